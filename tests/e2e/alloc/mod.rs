//! Kind `alloc`, in modes that see each allocation, against programs that say what they allocate.

mod live;
mod program;
mod window;
