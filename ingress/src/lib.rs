//! sipcast-ingress: capture, mark, encapsulate.
