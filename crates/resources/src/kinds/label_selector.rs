//! Kubernetes' label selector.

use std::collections::BTreeMap;

use crate::codes;
use crate::decode::{Cx, choice, record};
use crate::span::Spanned;

record! {
    /// Which labels an object must have. An empty selector selects every object.
    pub struct LabelSelector {
        /// Labels that must be there with these values.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub match_labels: BTreeMap<String, String> as "matchLabels",
        /// Requirements, all of which must hold.
        pub match_expressions: Vec<Spanned<LabelRequirement>> as "matchExpressions",
    }
}

record! {
    /// One requirement on one label.
    pub struct LabelRequirement {
        /// The label's name.
        pub key: String [1..=317],
        /// How it is compared.
        pub operator: LabelOperator,
        /// With what.
        pub values: Vec<String>,
    }
}

choice! {
    /// How a label is compared.
    pub enum LabelOperator {
        /// Its value is one of these.
        In = "In",
        /// It is absent, or its value is none of these.
        NotIn = "NotIn",
        /// It is there.
        Exists = "Exists",
        /// It is absent.
        DoesNotExist = "DoesNotExist",
    }
}

/// Reports labels by which endpoints are told apart, where one has no name.
pub(super) fn named(labels: &Spanned<BTreeMap<String, String>>, cx: &mut Cx) {
    if labels.keys().any(String::is_empty) {
        cx.error(labels.span, codes::INVALID_VALUE, "`matchLabels` has a label without a name").help =
            Some("write it as `version: v2`".to_owned());
    }
}

impl LabelSelector {
    /// Whether an object with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }

    pub(crate) fn validate(&self, cx: &mut Cx) {
        for requirement in &self.match_expressions {
            let wants_values = matches!(requirement.operator, LabelOperator::In | LabelOperator::NotIn);
            if wants_values == requirement.values.is_empty() {
                let verb = if wants_values { "needs" } else { "excludes" };
                let message = format!("operator `{}` {verb} `values`", requirement.operator);
                cx.error(requirement.span, codes::CONFLICTING_FIELDS, message);
            }
        }
    }
}

impl LabelRequirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            LabelOperator::In => value.is_some_and(|value| self.values.contains(value)),
            LabelOperator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Span;

    fn selects(operator: LabelOperator, values: &[&str], value: Option<&str>) -> bool {
        let values = values.iter().map(ToString::to_string).collect();
        let requirement = LabelRequirement { key: "tier".to_owned(), operator, values };
        let selector = LabelSelector {
            match_labels: BTreeMap::new(),
            match_expressions: vec![Spanned::new(requirement, Span::default())],
        };
        selector.matches(&value.map(|value| ("tier".to_owned(), value.to_owned())).into_iter().collect())
    }

    #[test]
    fn selects_as_kubernetes_does() {
        use LabelOperator::{DoesNotExist, Exists, In, NotIn};
        for (operator, values, edge, back, none) in [
            (In, &["edge"][..], true, false, false),
            (NotIn, &["edge"][..], false, true, true),
            (Exists, &[][..], true, true, false),
            (DoesNotExist, &[][..], false, false, true),
        ] {
            assert_eq!(selects(operator, values, Some("edge")), edge, "{operator} edge");
            assert_eq!(selects(operator, values, Some("back")), back, "{operator} back");
            assert_eq!(selects(operator, values, None), none, "{operator} without the label");
        }
    }
}
