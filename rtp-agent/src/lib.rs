//! sipcast-rtp-agent: RTP relay under remote control.
//!
//! Pure: [`ports`], [`latch`], [`hold`], [`bursts`], [`quality`], [`reception`] and [`session`] are one
//! media stream each in their part, [`control`] is the protocol with a concentrator, [`relay`] composes them. IO: [`sockets`]
//! receives and sends media, [`fastpath`] has a BPF program relay what needs no judgement, [`control_link`] dials the concentrators, [`eventloop`] runs both. [`standby`]
//! keeps a second agent ready to take over, or keeps this one ready.
#![forbid(unsafe_code)]

pub mod bursts;
#[cfg(test)]
mod clock;
pub mod config;
pub mod control;
pub mod control_link;
pub mod eventloop;
pub mod fastpath;
mod file_limit;
pub mod hold;
pub mod latch;
pub mod metrics;
pub mod ng;
mod peek;
pub mod ports;
pub mod quality;
pub mod reception;
pub mod relay;
pub mod session;
pub mod sockets;
pub mod standby;
