//! Addresses in CBOR: 4 or 16 bytes in network order; with a port, an array of the two.

/// One address.
pub(crate) mod ip {
    use std::net::IpAddr;

    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(crate) fn encode<C, W: Write>(
        addr: &IpAddr,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match addr {
            IpAddr::V4(v4) => encoder.bytes(&v4.octets())?.ok(),
            IpAddr::V6(v6) => encoder.bytes(&v6.octets())?.ok(),
        }
    }

    pub(crate) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<IpAddr, DecodeError> {
        let bytes = decoder.bytes()?;
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            return Ok(IpAddr::from(v4));
        }
        match <[u8; 16]>::try_from(bytes) {
            Ok(v6) => Ok(IpAddr::from(v6)),
            Err(_) => Err(DecodeError::message("an address has 4 or 16 bytes")),
        }
    }
}

/// An array of addresses.
pub(crate) mod ips {
    use std::net::IpAddr;

    use minicbor::data::Type;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(crate) fn encode<C, W: Write>(
        addrs: &[IpAddr],
        encoder: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.array(addrs.len() as u64)?;
        for addr in addrs {
            super::ip::encode(addr, encoder, ctx)?;
        }
        Ok(())
    }

    pub(crate) fn decode<C>(
        decoder: &mut Decoder<'_>,
        ctx: &mut C,
    ) -> Result<Vec<IpAddr>, DecodeError> {
        // The claimed length is only counted down: what is pushed is really there.
        let mut left = decoder.array()?;
        let mut addrs = Vec::new();
        loop {
            match left {
                Some(0) => return Ok(addrs),
                Some(n) => left = Some(n - 1),
                None if decoder.datatype()? == Type::Break => {
                    decoder.skip()?;
                    return Ok(addrs);
                }
                None => {}
            }
            addrs.push(super::ip::decode(decoder, ctx)?);
        }
    }
}

/// An address with a port, or null.
pub(crate) mod socket {
    use std::net::SocketAddr;

    use minicbor::data::Type;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(crate) fn encode<C, W: Write>(
        addr: &Option<SocketAddr>,
        encoder: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let Some(addr) = addr else {
            return encoder.null()?.ok();
        };
        encoder.array(2)?;
        super::ip::encode(&addr.ip(), encoder, ctx)?;
        encoder.u16(addr.port())?.ok()
    }

    pub(crate) fn decode<C>(
        decoder: &mut Decoder<'_>,
        ctx: &mut C,
    ) -> Result<Option<SocketAddr>, DecodeError> {
        if decoder.datatype()? == Type::Null {
            return decoder.null().map(|()| None);
        }
        if decoder.array()? != Some(2) {
            return Err(DecodeError::message("a socket address is [address, port]"));
        }
        let ip = super::ip::decode(decoder, ctx)?;
        Ok(Some(SocketAddr::new(ip, decoder.u16()?)))
    }

    pub(crate) fn nil() -> Option<Option<SocketAddr>> {
        Some(None)
    }

    pub(crate) fn is_nil(addr: &Option<SocketAddr>) -> bool {
        addr.is_none()
    }
}

/// An address with a port.
pub(crate) mod plain_socket {
    use std::net::SocketAddr;

    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(crate) fn encode<C, W: Write>(
        addr: &SocketAddr,
        encoder: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        super::socket::encode(&Some(*addr), encoder, ctx)
    }

    pub(crate) fn decode<C>(
        decoder: &mut Decoder<'_>,
        ctx: &mut C,
    ) -> Result<SocketAddr, DecodeError> {
        super::socket::decode(decoder, ctx)?
            .ok_or_else(|| DecodeError::message("an address and a port, and not null"))
    }
}
