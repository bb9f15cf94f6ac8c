//! sipcast-concentrator: decapsulate, SIP proxy and registrar, relay control.
