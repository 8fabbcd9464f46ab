//! When jobs are due, and that every slot is accounted for.

mod accounting;
mod answers;
mod dispatching;
mod properties;
mod systemd;
mod zones;
