//! The networks of the lab, one file each.

pub(crate) mod dual_stack;
pub(crate) mod internet;
pub(crate) mod two_edges;
