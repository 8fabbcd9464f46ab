//! When jobs are due, and that every slot is accounted for.

mod properties;
mod systemd;
mod zones;
