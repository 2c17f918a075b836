//! From nodes to typed values: one pass that goes on after an error, so that a user sees all of an object's mistakes.
//!
//! The three macros here are the whole grammar of the language: [`record!`] is a mapping with known fields, [`choice!`]
//! one word of several, [`text_types!`](text) a text of a certain form. A type read by them refuses what it does not know.

pub(crate) mod duration;
pub(crate) mod fields;
pub(crate) mod node;
pub(crate) mod overlay;
pub(crate) mod scalars;
pub(crate) mod text;
pub(crate) mod timestamp;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use meshwork_base::Code;

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::limits;
use crate::span::{FileName, Span, Spanned};

pub(crate) use fields::Fields;
pub(crate) use node::{Node, Value};

/// What is carried through the reading of one object.
pub(crate) struct Cx {
    file: FileName,
    path: String,
    /// Where the object begins.
    start: Span,
    /// The object's values must not appear in messages.
    pub(crate) confidential: bool,
    pub(crate) found: Vec<Diagnostic>,
}

impl Cx {
    pub(crate) fn new(file: &FileName, start: Span) -> Self {
        Self { file: Arc::clone(file), path: String::new(), start, confidential: false, found: Vec::new() }
    }

    /// Where the object begins.
    pub(crate) const fn start(&self) -> Span {
        self.start
    }

    pub(crate) const fn file(&self) -> &FileName {
        &self.file
    }

    /// The path of the value being read, as `spec.rules[0].name`.
    pub(crate) fn path(&self) -> &str {
        if self.path.is_empty() { "the object" } else { &self.path }
    }

    pub(crate) fn in_field<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = read(self);
        self.path.truncate(before);
        result
    }

    pub(crate) fn in_item<T>(&mut self, index: usize, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        write!(self.path, "[{index}]").expect("writing to a String cannot fail");
        let result = read(self);
        self.path.truncate(before);
        result
    }

    /// Reports an error; the help may be added to what is returned.
    pub(crate) fn error(&mut self, span: Span, code: Code, message: impl Into<String>) -> &mut Diagnostic {
        if self.is_full() {
            self.found.pop();
        }
        self.found.push(Diagnostic::error(&self.file, span, code, message));
        self.found.last_mut().expect("one was just pushed")
    }

    /// Whether so much was reported that further reports only replace the last one.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() > limits::DIAGNOSTICS
    }

    /// Reports a value of the wrong type at the current path.
    pub(crate) fn wrong_type<T>(&mut self, node: &Node, expected: &str) -> Option<T> {
        let message =
            format!("`{}` must be {expected}, not {}", self.path(), node.describe(self.confidential));
        self.error(node.span, codes::WRONG_TYPE, message);
        None
    }

    pub(crate) fn has_errors(&self) -> bool {
        !self.found.is_empty()
    }
}

/// A value that can be read from a node.
pub(crate) trait Decode: Sized {
    /// Reads it; `None` when something was wrong, which is then reported in `cx`.
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self>;

    /// What an absent (or null) field of this type means; `None`: the field is required.
    fn absent() -> Option<Self> {
        None
    }

    /// The same for a field of which `least` items are required at least.
    fn absent_of(least: i64) -> Option<Self> {
        let _ = least;
        Self::absent()
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        T::decode(node, cx).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let Value::Seq(items) = &node.value else {
            return cx.wrong_type(node, "a list");
        };
        let mut read = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            read.extend(cx.in_item(index, |cx| T::decode(item, cx)));
        }
        (read.len() == items.len()).then_some(read)
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn absent_of(least: i64) -> Option<Self> {
        (least < 1).then(Self::new)
    }
}

impl<T: Decode> Decode for Spanned<T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        T::decode(node, cx).map(|value| Self::new(value, node.span))
    }
}

impl<T: Decode> Decode for BTreeMap<String, T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            return cx.wrong_type(node, "a mapping");
        };
        let mut read = Self::new();
        for entry in entries {
            if let Some(value) = cx.in_field(&entry.key, |cx| T::decode(&entry.value, cx)) {
                read.insert(entry.key.clone(), value);
            }
        }
        (read.len() == entries.len()).then_some(read)
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

/// Caps what one file may report: 10 MB of nonsense must not become a gigabyte of complaints.
pub(crate) fn cap(mut found: Vec<Diagnostic>) -> Vec<Diagnostic> {
    if found.len() > limits::DIAGNOSTICS {
        found.truncate(limits::DIAGNOSTICS);
        if let Some(last) = found.last().cloned() {
            let span = Span { line: last.line, column: last.column, len: last.len };
            found.push(
                Diagnostic::error(
                    &last.file,
                    span,
                    codes::LIMIT_EXCEEDED,
                    "there are more problems than are told",
                )
                .with_help("mend the first ones and check again"),
            );
        }
    }
    found
}

/// A mapping with known fields: the struct, its reader and its JSON.
///
/// `name: Type as "jsonName" [min..=max] = default`. The bounds hold for a list's items, a mapping's entries, a text's
/// characters or a number, whichever the value is. A trailing `unimplemented { "field", … }` names the standard's
/// fields that Meshwork does not build yet.
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(
                $(#[$field_meta:meta])*
                pub $field:ident : $ty:ty $(as $json:literal)? $([$bounds:expr])? $(= $default:expr)?
            ),* $(,)?
        }
        $(unimplemented { $($absent:literal),* $(,)? })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                $(#[serde(rename = $json)])?
                pub $field: $ty,
            )*
        }

        impl $name {
            pub(crate) fn read_fields(
                fields: &mut $crate::decode::Fields<'_>,
                cx: &mut $crate::decode::Cx,
            ) -> Option<Self> {
                $(
                    let name = $crate::decode::record!(@name $field $($json)?);
                    $(fields.bound(cx, name, $bounds);)?
                    let $field =
                        $crate::decode::record!(@read fields, cx, name, $ty $([$bounds])? $(= $default)?);
                )*
                $(fields.refuse_unimplemented(cx, &[$($absent),*]);)?
                Some(Self { $($field: $field?),* })
            }
        }

        impl $crate::decode::Decode for $name {
            fn decode(node: &$crate::decode::Node, cx: &mut $crate::decode::Cx) -> Option<Self> {
                let mut fields = $crate::decode::Fields::open(node, cx)?;
                let read = Self::read_fields(&mut fields, cx);
                fields.close(cx).and(read)
            }
        }
    };
    (@name $field:ident $json:literal) => { $json };
    (@name $field:ident) => { stringify!($field) };
    (@read $fields:ident, $cx:ident, $name:ident, $ty:ty $([$bounds:expr])? = $default:expr) => {
        $fields.field_or::<$ty>($cx, $name, || $default)
    };
    (@read $fields:ident, $cx:ident, $name:ident, $ty:ty [$bounds:expr]) => {
        $fields.field_of::<$ty>($cx, $name, *std::ops::RangeInclusive::<i64>::start(&$bounds))
    };
    (@read $fields:ident, $cx:ident, $name:ident, $ty:ty) => { $fields.field::<$ty>($cx, $name) };
}
pub(crate) use record;

/// One word of several: the enum, its reader and its text.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $text:literal ),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[$variant_meta])* $variant ),* }

        impl $name {
            /// Every word.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word as written.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl $crate::decode::Decode for $name {
            fn decode(node: &$crate::decode::Node, cx: &mut $crate::decode::Cx) -> Option<Self> {
                let index = $crate::decode::scalars::word(node, cx, &[$($text),*])?;
                Some(Self::ALL[index])
            }
        }
    };
}
pub(crate) use choice;
