//! The networks of the lab, one file each.

pub(crate) mod two_edges;
