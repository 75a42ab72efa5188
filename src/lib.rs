//! The control plane for seedboxes.

pub mod clock;
pub mod ids;
pub mod money;
