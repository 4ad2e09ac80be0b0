//! What runs beside a load that is measured: an agent, or programs that do nothing on the same hooks.

pub(crate) mod agent;
pub(crate) mod empty;
pub(crate) mod hooks;
