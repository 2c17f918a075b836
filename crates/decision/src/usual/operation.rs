//! What requests have in common that ordinarily take as long as each other.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::FixedState;

/// Bytes of a path that tell operations apart.
const PATH: usize = 256;

/// An operation of a service: its method, and its path without the query and without what names one thing of many: a
/// segment that is mostly digits, an id in hexadecimal digits, or a long one with many digits. `/orders/17/items` and
/// `/orders/18/items` are one, `/v1/orders` and `/v2/orders` two. Paths of gRPC name nothing but methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation(u64);

impl Operation {
    /// The operation of a request. Those of callers and those of who is called are two.
    #[must_use]
    pub fn of(is_called: bool, service: &str, method: &[u8], path: &[u8], is_grpc: bool) -> Self {
        let mut hasher = FixedState::default().build_hasher();
        hasher.write(service.as_bytes());
        hasher.write(method);
        hasher.write_u64(shape(path, is_grpc) ^ u64::from(is_called));
        Self(hasher.finish())
    }
}

/// What a segment is made of.
#[derive(Default)]
struct Segment {
    length: u32,
    digits: u32,
    /// Hexadecimal digits, and what stands between their groups.
    hex: u32,
    starts_with_v: bool,
}

impl Segment {
    const fn add(&mut self, byte: u8) {
        if self.length == 0 {
            self.starts_with_v = matches!(byte, b'v' | b'V');
        }
        self.length += 1;
        self.digits += byte.is_ascii_digit() as u32;
        self.hex += (byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_')) as u32;
    }

    /// Whether it names one of many. A version does not, nor a word with a digit in it.
    const fn is_name(&self) -> bool {
        const LONG: u32 = 20;
        let Self { length, digits, hex, starts_with_v } = *self;
        let is_version = starts_with_v && digits + 1 == length && digits <= 3;
        let is_number = digits * 2 > length && !is_version;
        let is_hex = hex == length && digits >= 2;
        is_number || is_hex || length >= LONG && digits * 6 >= length
    }
}

/// A number of a path's shape (FNV-1a, since most paths are short).
fn shape(path: &[u8], is_grpc: bool) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let step = |shape: u64, byte: u8| (shape ^ u64::from(byte)).wrapping_mul(PRIME);
    let mut shape = 0xcbf2_9ce4_8422_2325;
    let (mut begun, mut segment) = (shape, Segment::default());
    let ended = |shape: u64, begun: u64, segment: &Segment| match segment.is_name() && !is_grpc {
        true => step(begun, b'*'),
        false => shape,
    };
    for &byte in path.iter().take(PATH).take_while(|byte| **byte != b'?') {
        if byte == b'/' {
            shape = step(ended(shape, begun, &segment), byte);
            (begun, segment) = (shape, Segment::default());
        } else {
            segment.add(byte);
            shape = step(shape, byte);
        }
    }
    ended(shape, begun, &segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Operation {
        Operation::of(true, "shop/web:80", b"GET", path.as_bytes(), false)
    }

    #[test]
    fn an_operation_is_a_path_without_names_and_query() {
        assert_eq!(of("/orders/17/items?a=1"), of("/orders/a3f-18/items"));
        assert_eq!(of("/orders/17"), of("/orders/18?x"));
        assert_ne!(of("/orders/17"), of("/orders/17/items"));
        assert_ne!(of("/orders/17"), of("/orders/"));
        assert_ne!(of("/orders/17"), of("/carts/17"));
        assert_ne!(of("/shop.Cart/Get"), of("/shop.Cart/Add"));
        assert_eq!(of(""), of("?"));
    }

    #[test]
    fn a_word_with_a_digit_is_no_name() {
        for (one, other) in [
            ("/shop.v1.Orders/List", "/shop.v1.Users/List"),
            ("/shop.v1.A/GetV2", "/shop.v1.B/PutV2"),
            ("/v1/orders", "/v2/orders"),
            ("/v10", "/v11"),
            ("/oauth2/token", "/s3/token"),
            ("/face2", "/cafe"),
            ("/face2", "/cafe3"),
            ("/V10", "/V11"),
            ("/the-terms-of-our-service-2", "/privacy-in-our-service-2"),
        ] {
            assert_ne!(of(one), of(other), "{one} {other}");
        }
    }

    #[test]
    fn numbers_and_ids_are_names() {
        for name in [
            "1",
            "2024-11-26",
            "ord-1234567",
            "a3f-18",
            "v1234",
            "v-123",
            "5f2b9c01",
            "f8a5fd30-7ba0-4d87-b202-548d07d15ad6",
            "F8A5FD307BA04D87B202548D07D15AD6",
            "01HZX3K9Q2ABCDEFGHJKMNPQ7R",
        ] {
            assert_eq!(of(&format!("/orders/{name}/items")), of("/orders/17/items"), "{name}");
        }
    }

    #[test]
    fn of_a_long_path_the_beginning_counts() {
        let long = format!("/{}", "abc/".repeat(100));
        assert_eq!(of(&format!("{long}one")), of(&format!("{long}other")));
        assert_ne!(of(&long), of(&format!("/b{long}")));
    }

    #[test]
    fn of_grpc_nothing_is_a_name() {
        let of = |path: &[u8]| Operation::of(true, "shop/web:80", b"POST", path, true);
        assert_ne!(of(b"/2024/Get"), of(b"/2025/Get"));
        assert_eq!(of(b"/2024/Get?a"), of(b"/2024/Get"));
    }

    #[test]
    fn services_methods_and_sides_are_told_apart() {
        let all = [
            of("/a"),
            Operation::of(false, "shop/web:80", b"GET", b"/a", false),
            Operation::of(true, "shop/web:80", b"PUT", b"/a", false),
            Operation::of(true, "shop/cart:80", b"GET", b"/a", false),
        ];
        let different: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
