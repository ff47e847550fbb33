//! How long each wait may take.

use std::fmt;
use std::time::Duration;

/// The limits of every wait, by the keys of `defaults.timeouts`. A rule may set them again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// One name's lookup, all servers and tries together.
    pub dns: Duration,
    /// The TCP connection, all addresses together.
    pub connect: Duration,
    /// The TCP connection to one address.
    pub connect_address: Duration,
    /// How long one address is tried alone before the next joins in (RFC 8305, section 5).
    pub connect_stagger: Duration,
    /// An upstream's answer to CONNECT.
    pub proxy_reply: Duration,
    /// A TLS handshake of our own, from its first byte to its last.
    pub hello: Duration,
    /// The first byte of an answer's head after the request was sent.
    pub first_byte: Duration,
    /// A body without progress, in either direction.
    pub body_idle: Duration,
    /// A tunnel without a byte in either direction.
    pub idle: Duration,
    /// A tunnel from its request to its end, whatever passes in it; `None` for as long as it likes.
    pub max_duration: Option<Duration>,
    /// The first flight of a tunnel, where a rule asks for it.
    pub sniff: Duration,
    /// A request's head, from the connection or from its first byte.
    pub head: Duration,
    /// A client's connection between two requests, and an upstream's of HTTP/2 between two tunnels.
    pub keepalive: Duration,
}

/// How long a tunnel may be silent once one side has ended its direction.
pub const HALF_CLOSED_IDLE: Duration = Duration::from_mins(1);

/// TCP keepalive on both sides of a tunnel: below the 300 s at which firewalls forget a connection.
pub const TCP_KEEPALIVE: Duration = Duration::from_mins(1);

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            dns: Duration::from_secs(5),
            connect: Duration::from_secs(10),
            connect_address: Duration::from_secs(3),
            connect_stagger: Duration::from_millis(250),
            proxy_reply: Duration::from_secs(30),
            hello: Duration::from_secs(3),
            first_byte: Duration::from_mins(5),
            body_idle: Duration::from_mins(5),
            idle: Duration::from_hours(1),
            max_duration: None,
            sniff: Duration::from_millis(300),
            head: Duration::from_secs(15),
            keepalive: Duration::from_mins(1),
        }
    }
}

/// A duration in an error text: one unit, three digits, as in `250ms`, `3s`, `3.1s`.
#[derive(Clone, Copy, Debug)]
pub struct Brief(pub Duration);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let us = self.0.as_micros();
        match ms {
            0..10 if !us.is_multiple_of(1000) => {
                let tenths = us.div_ceil(100);
                write!(f, "{}.{}ms", tenths / 10, tenths % 10)
            }
            0..1000 => write!(f, "{ms}ms"),
            1000..100_000 if ms % 1000 < 100 => write!(f, "{}s", ms / 1000),
            1000..100_000 => write!(f, "{}.{}s", ms / 1000, ms % 1000 / 100),
            _ if ms.is_multiple_of(60_000) => write!(f, "{}m", ms / 60_000),
            _ => write!(f, "{}s", ms / 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_told_in_three_digits() {
        let told = |ms: u64| Brief(Duration::from_millis(ms)).to_string();
        assert_eq!(
            [told(0), told(250), told(3000), told(3001)],
            ["0ms", "250ms", "3s", "3s"]
        );
        let told_us = |us: u64| Brief(Duration::from_micros(us)).to_string();
        assert_eq!([told_us(20), told_us(2345)], ["0.1ms", "2.4ms"]);
        assert_eq!(
            [told(3141), told(99_999), told(300_000), told(3_600_000)],
            ["3.1s", "99.9s", "5m", "60m"]
        );
    }
}
