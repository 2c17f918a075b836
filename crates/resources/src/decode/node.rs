//! A document as a tree of values that know where they stand.

use crate::span::Span;

use super::fields::shorten;

/// A value and its place. No `Debug`: it may hold a private key.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

/// What a node is, by the core schema of YAML 1.2, which is also JSON's.
#[derive(Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

impl Node {
    /// What a user would call it.
    pub(crate) fn describe(&self, confidential: bool) -> String {
        match &self.value {
            Value::Null => "`null`".to_owned(),
            Value::Text(_) if confidential => "a text".to_owned(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) if confidential => {
                "a value without quotes".to_owned()
            }
            Value::Bool(value) => format!("`{value}`"),
            Value::Int(number) => format!("the number {number}"),
            Value::Float(number) => format!("the number {number}"),
            Value::Text(text) => format!("the text `{}`", shorten(text)),
            Value::Seq(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(number) => {
                i64::try_from(*number).map_or_else(|_| number.to_string().into(), Into::into)
            }
            Value::Float(number) => (*number).into(),
            Value::Text(text) => text.clone().into(),
            Value::Seq(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}
