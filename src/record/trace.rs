//! The trace that a request belongs to (W3C Trace Context).

use std::fmt;

use http::{HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// The field of a request that says to which trace it belongs.
pub const TRACEPARENT: &str = "traceparent";

/// The trace of one request, and its own place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Trace {
    /// The trace, in 32 hex digits: the client's, or the record's id where the client named none.
    #[serde(rename = "trace.id")]
    #[schemars(with = "String")]
    pub id: Hex<16>,
    /// The span that stands for this request, in 16 hex digits: the last ones of the record's id. Absent where none is made.
    #[serde(rename = "span.id", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub span: Option<Hex<8>>,
    /// The client's span.
    #[serde(
        rename = "egress.client.span_id",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub parent: Option<Hex<8>>,
}

/// Bytes that are written as lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<const N: usize> Hex<N> {
    /// Reads lowercase hex digits that are not all zero.
    fn read(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; N];
        if text.len() != 2 * N {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        (bytes != [0; N]).then_some(Self(bytes))
    }
}

/// Of which requests a span is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Whether a client that has decided is followed.
    pub follows_client: bool,
    /// So many of a million others.
    pub per_million: u32,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            follows_client: true,
            per_million: 1_000_000,
        }
    }
}

impl Sampler {
    fn takes(self, id: Hex<16>, is_sampled_by_client: Option<bool>) -> bool {
        if let (true, Some(is_sampled)) = (self.follows_client, is_sampled_by_client) {
            return is_sampled;
        }
        // Its last seven bytes are random (W3C Trace Context, level 2): all who go by the same share take the same traces.
        let [_, _, _, _, _, _, _, _, _, last @ ..] = id.0;
        let drawn = last
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        u128::from(drawn) * 1_000_000 < u128::from(self.per_million) << 56
    }
}

impl Trace {
    /// The trace of a request with this record: as its client says, and, where spans are made, one of its own where the client
    /// says nothing. `None` where there is neither.
    ///
    /// Source: W3C Trace Context, sections 3.2 and 4.3: what is no valid field of a known form counts as none.
    pub fn of(headers: &HeaderMap, record: Uuid, sampler: Option<Sampler>) -> Option<Self> {
        let said = said(headers);
        if said.is_none() && sampler.is_none() {
            return None;
        }
        let id = said.map_or(Hex(*record.as_bytes()), |(id, ..)| id);
        let [_, _, _, _, _, _, _, _, last @ ..] = *record.as_bytes();
        let is_sampled = said.map(|(_, _, is_sampled)| is_sampled);
        let takes = |sampler: &Sampler| sampler.takes(id, is_sampled);
        Some(Self {
            id,
            span: sampler.filter(takes).map(|_| Hex(last)),
            parent: said.map(|(_, parent, _)| parent),
        })
    }

    /// What whoever is next is told: that its spans belong under ours. `None` where no span is made: then the client's own word
    /// stands.
    pub fn traceparent(&self) -> Option<HeaderValue> {
        let span = self.span?;
        HeaderValue::try_from(format!("00-{}-{span}-01", self.id)).ok()
    }
}

/// The client's trace and span, and whether it keeps them.
fn said(headers: &HeaderMap) -> Option<(Hex<16>, Hex<8>, bool)> {
    let mut fields = headers.get_all(TRACEPARENT).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return None;
    };
    let mut parts = field.to_str().ok()?.trim().splitn(5, '-');
    let [version, id, parent, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let version = version_of(version)?;
    // Later versions may say more behind it.
    if version == 0 && parts.next().is_some() {
        return None;
    }
    let flags = byte(flags)?;
    Some((Hex::read(id)?, Hex::read(parent)?, flags & 1 == 1))
}

fn version_of(text: &str) -> Option<u8> {
    byte(text).filter(|version| *version != 0xff)
}

/// Two lowercase hex digits.
fn byte(text: &str) -> Option<u8> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_form = text.len() == 2 && text.bytes().all(is_hex);
    is_form.then(|| u8::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn record() -> Uuid {
        "019a9c1e-0000-7abc-8123-456789abcdef".parse().unwrap()
    }

    fn of(fields: &[&str], sampler: Option<Sampler>) -> Option<Trace> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(TRACEPARENT, HeaderValue::from_str(field).unwrap());
        }
        Trace::of(&headers, record(), sampler)
    }

    #[test]
    fn a_client_that_names_its_trace_is_taken_at_its_word() {
        let trace = of(&[SAID], None).unwrap();
        assert_eq!(trace.id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.parent.unwrap().to_string(), "00f067aa0ba902b7");
        assert_eq!((trace.span, trace.traceparent()), (None, None));
        let trace = of(&[SAID], Some(Sampler::default())).unwrap();
        assert_eq!(
            trace.traceparent().unwrap(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-8123456789abcdef-01"
        );
    }

    #[test]
    fn what_is_no_trace_counts_as_none() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b77-01",
            "+0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(of(&[wrong], None), None, "{wrong}");
            // A trace of our own, then.
            let own = of(&[wrong], Some(Sampler::default())).unwrap();
            assert_eq!((own.id.0, own.parent), (*record().as_bytes(), None));
        }
        assert_eq!(of(&[SAID, SAID], None), None);
        let later = SAID.replacen("00", "01", 1) + "-more";
        assert!(of(&[&later], None).is_some());
    }

    #[test]
    fn a_client_decides_on_its_own_traces_unless_it_is_not_followed() {
        let unwanted = SAID.replace("-01", "-00");
        let sampler = |follows_client, per_million| {
            Some(Sampler {
                follows_client,
                per_million,
            })
        };
        let is_taken = |said: &str, sampler| of(&[said], sampler).unwrap().span.is_some();
        assert!(is_taken(SAID, sampler(true, 0)));
        assert!(!is_taken(&unwanted, sampler(true, 1_000_000)));
        assert!(is_taken(&unwanted, sampler(false, 1_000_000)));
        assert!(!is_taken(SAID, sampler(false, 0)));
        // Drawn by the last seven bytes: here by 0xce929d…, which is 0.807 of all.
        assert!(is_taken(SAID, sampler(false, 810_000)));
        assert!(!is_taken(SAID, sampler(false, 800_000)));
    }
}
