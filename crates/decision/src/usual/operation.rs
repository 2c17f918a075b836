//! What requests have in common that ordinarily take as long as each other.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::FixedState;

/// Bytes of a path that tell operations apart.
const PATH: usize = 256;

/// An operation of a service: its method, and its path without the query and without what names one thing of many. As
/// such counts every segment with a digit in it: `/orders/17/items` and `/orders/18/items` are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation(u64);

impl Operation {
    /// The operation of a request. Those of callers and those of who is called are two.
    #[must_use]
    pub fn of(is_called: bool, service: &str, method: &[u8], path: &[u8]) -> Self {
        let mut hasher = FixedState::default().build_hasher();
        hasher.write(service.as_bytes());
        hasher.write(method);
        hasher.write_u64(shape(path) ^ u64::from(is_called));
        Self(hasher.finish())
    }
}

/// A number of a path's shape (FNV-1a, since most paths are short).
fn shape(path: &[u8]) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let step = |shape: u64, byte: u8| (shape ^ u64::from(byte)).wrapping_mul(PRIME);
    let mut shape = 0xcbf2_9ce4_8422_2325;
    // Where the segment begins, and whether it names one of many.
    let (mut begun, mut is_name) = (shape, false);
    for &byte in path.iter().take(PATH).take_while(|byte| **byte != b'?') {
        is_name |= byte.is_ascii_digit();
        if byte == b'/' {
            shape = step(if is_name { step(begun, b'*') } else { shape }, byte);
            (begun, is_name) = (shape, false);
        } else {
            shape = step(shape, byte);
        }
    }
    if is_name { step(begun, b'*') } else { shape }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Operation {
        Operation::of(true, "shop/web:80", b"GET", path.as_bytes())
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
    fn services_methods_and_sides_are_told_apart() {
        let all = [
            of("/a"),
            Operation::of(false, "shop/web:80", b"GET", b"/a"),
            Operation::of(true, "shop/web:80", b"PUT", b"/a"),
            Operation::of(true, "shop/cart:80", b"GET", b"/a"),
        ];
        let different: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
