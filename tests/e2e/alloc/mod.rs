//! Kind `alloc`: what processes allocate, against programs that say it themselves.

mod live;
mod program;
