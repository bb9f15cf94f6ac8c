//! sipcast-rtp-agent: RTP relay under remote control.
