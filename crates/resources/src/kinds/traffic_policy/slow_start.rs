//! How an endpoint begins.

use crate::codes;
use crate::decode::duration::GatewayDuration;
use crate::decode::overlay::{layered, words};
use crate::decode::{Cx, Decode, Node, Value};
use crate::span::Spanned;

layered! {
    /// How an endpoint that has just begun, or is back, gets a share that grows to its weight. The names are Envoy's.
    /// Not for `RingHash` and `Maglev`: where a hash leads does not hang on time.
    pub struct SlowStart {
        /// How long it has less than its weight.
        pub window: Spanned<GatewayDuration>,
        /// How its share grows: evenly with 1, which holds when absent; above, fast at first; below, late.
        pub aggression: Option<Aggression>,
        /// Percent of its weight that it has from the beginning; 10 when absent.
        pub min_weight_percent: Option<u32> as "minWeightPercent" [1..=100],
    }
}

/// How a share grows: a number from 0.001 to 1000, of which thousandths count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggression(u32);

words!(Aggression);

impl Aggression {
    /// In thousandths.
    #[must_use]
    pub const fn thousandths(self) -> u32 {
        self.0
    }
}

impl serde::Serialize for Aggression {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1e3)
    }
}

impl Decode for Aggression {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "what is that large is refused")]
        let number = match node.value {
            Value::Int(number) => number as f64,
            Value::Float(number) => number,
            _ => return cx.wrong_type(node, "a number"),
        };
        if !(0.001..=1e3).contains(&number) {
            let message = format!("`{}` is {number}; 0.001 to 1000 is allowed", cx.path());
            cx.error(node.span, codes::OUT_OF_RANGE, message);
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and a million"
        )]
        let thousandths = (number * 1e3).round() as u32;
        Some(Self(thousandths))
    }
}

pub(super) fn validate(slow_start: &Spanned<SlowStart>, hashing: Option<&str>, cx: &mut Cx) {
    if slow_start.window.is_zero() {
        let message = "`loadBalancer.slowStart.window` is 0s: nothing would begin slowly";
        cx.error(slow_start.window.span, codes::CONFLICTING_FIELDS, message).help =
            Some("write a time longer than none, or remove `slowStart`".to_owned());
    }
    if let Some(algorithm) = hashing {
        let message = format!("`loadBalancer.slowStart` has no meaning for `algorithm: {algorithm}`");
        cx.error(slow_start.span, codes::CONFLICTING_FIELDS, message).help =
            Some("where a hash leads does not hang on time; remove it".to_owned());
    }
}
