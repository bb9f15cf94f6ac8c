//! sipcast-rtp-agent: RTP relay under remote control.

#[cfg(test)]
mod clock;
pub mod hold;
pub mod latch;
mod peek;
pub mod ports;
pub mod reception;
pub mod session;
