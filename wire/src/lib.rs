//! Bytes to types and back for everything that crosses a machine border; pure.
