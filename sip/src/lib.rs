//! SIP as state machines: messages, transactions, proxy, registrar; pure.
