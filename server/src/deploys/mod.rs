//! Deploys: which versions of services there are, since when, on which hosts.
//!
//! ingest -> [`registry`] (who was seen when; [`spells`] has the rules, [`record`] what is kept) -> `grpc`, api.
//! What is known outlives the profiles: it is kept as documents of the store.

pub(crate) mod grpc;
pub mod record;
pub mod registry;
pub mod spells;
