//! Plans, orders and boxes.

pub mod orders;
pub mod resources;
