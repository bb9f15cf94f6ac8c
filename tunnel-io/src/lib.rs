//! TUN devices and raw tunnel sockets: the only crate with unsafe.
