//! Numbers, words and truth.

use super::fields::{list, nearest, shorten};
use super::node::{Node, Value};
use super::{Cx, Decode};
use crate::codes;

/// The index of the word written among those allowed.
pub(crate) fn word(node: &Node, cx: &mut Cx, allowed: &[&str]) -> Option<usize> {
    let Value::Text(written) = &node.value else {
        return cx.wrong_type(node, &format!("one of {}", list(allowed)));
    };
    if let Some(index) = allowed.iter().position(|word| word == written) {
        return Some(index);
    }
    let message = format!("`{}` cannot be `{}`; it is one of {}", cx.path(), shorten(written), list(allowed));
    cx.error(node.span, codes::UNKNOWN_VALUE, message).help =
        nearest(written, allowed).map(|word| format!("did you mean `{word}`?"));
    None
}

impl Decode for String {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        if let Value::Text(text) = &node.value {
            return Some(text.clone());
        }
        no_text(node, cx, "put it in quotes")
    }
}

/// Reports what is no text; a number or truth value gets advice.
pub(crate) fn no_text<T>(node: &Node, cx: &mut Cx, advice: &str) -> Option<T> {
    cx.wrong_type::<()>(node, "a text");
    let quotable = matches!(node.value, Value::Bool(_) | Value::Int(_) | Value::Float(_));
    if quotable && let Some(last) = cx.found.last_mut() {
        last.help = Some(advice.to_owned());
    }
    None
}

impl Decode for bool {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => cx.wrong_type(node, "`true` or `false`"),
        }
    }
}

macro_rules! whole_numbers {
    ($($ty:ty),*) => {$(
        impl Decode for $ty {
            fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
                let Value::Int(number) = node.value else {
                    return no_number(node, cx);
                };
                match Self::try_from(number) {
                    Ok(number) => Some(number),
                    Err(_) => out_of_type(node, cx, number, &format!("{} to {}", Self::MIN, Self::MAX)),
                }
            }
        }
    )*};
}
whole_numbers!(u16, u32, i64);

fn no_number<T>(node: &Node, cx: &mut Cx) -> Option<T> {
    cx.wrong_type::<()>(node, "a whole number");
    let quoted = matches!(&node.value, Value::Text(text) if text.parse::<i64>().is_ok());
    if quoted && let Some(last) = cx.found.last_mut() {
        last.help = Some("remove the quotes, and leading zeros".to_owned());
    }
    None
}

fn out_of_type<T>(node: &Node, cx: &mut Cx, number: i128, range: &str) -> Option<T> {
    // A field with bounds of its own has already said so, and more precisely.
    let said = cx.found.last().is_some_and(|last| {
        last.code == codes::OUT_OF_RANGE && (last.line, last.column) == (node.span.line, node.span.column)
    });
    if !said {
        let message = format!("`{}` is {number}; {range} is allowed", cx.path());
        cx.error(node.span, codes::OUT_OF_RANGE, message);
    }
    None
}

/// Any value, kept as it is: for what others wrote and we only carry.
impl Decode for serde_json::Value {
    fn decode(node: &Node, _: &mut Cx) -> Option<Self> {
        Some(node.to_json())
    }
}
