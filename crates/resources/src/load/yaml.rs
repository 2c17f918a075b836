//! One document's text as a tree of nodes, within the limits of [`crate::limits`].

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Tag};
use meshwork_base::Code;

use crate::codes;
use crate::decode::node::{Entry, Node, Value};
use crate::diagnostic::Diagnostic;
use crate::limits;
use crate::span::{FileName, Span};

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// A document that cannot be read to its end.
pub(super) struct Torn {
    pub(super) found: Diagnostic,
    /// What stands before the place where it is wrong: often who the object is.
    pub(super) part: Option<Node>,
}

/// Parses a document; `None` when it has no content. `first_line` is the document's line in its file.
pub(super) fn parse(
    file: &FileName,
    text: &str,
    first_line: u32,
) -> std::result::Result<Option<Node>, Box<Torn>> {
    let mut options = granit_parser::Options::default();
    options.emit_comments = false;
    let mut builder = Builder {
        file,
        lines_above: first_line - 1,
        open: Vec::new(),
        done: None,
        anchors: HashMap::new(),
        open_anchors: Vec::new(),
        nodes: 0,
        aliases: 0,
        aliased: 0,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let taken = match event {
            Ok((event, span)) => builder.take(event, &span),
            Err(error) => Err(builder.syntax_error(&error)),
        };
        if let Err(found) = taken {
            return Err(Box::new(Torn { found: *found, part: builder.part() }));
        }
    }
    Ok(builder.done)
}

/// An anchored node with how many values it and its parts are, and how deep.
struct Anchored {
    node: Node,
    nodes: usize,
    depth: usize,
}

/// A mapping or sequence whose end has not come.
struct Open {
    content: Content,
    span: Span,
    anchor: usize,
    nodes_before: usize,
    depth: usize,
}

enum Content {
    Seq(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashMap<String, u32>, key: Option<(String, Span)>, merges: Vec<Node> },
}

struct Builder<'f> {
    file: &'f FileName,
    lines_above: u32,
    open: Vec<Open>,
    done: Option<Node>,
    anchors: HashMap<usize, Anchored>,
    open_anchors: Vec<usize>,
    nodes: usize,
    aliases: usize,
    aliased: usize,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: &granit_parser::Span) -> Result<()> {
        let at = self.place(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref(), at),
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(Content::Seq(Vec::new()), anchor, tag.as_deref(), at)
            }
            Event::MappingStart(_, anchor, tag) => {
                let content =
                    Content::Map { entries: Vec::new(), seen: HashMap::new(), key: None, merges: Vec::new() };
                self.begin(content, anchor, tag.as_deref(), at)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(id) => self.alias(id, at),
            _ => Ok(()),
        }
    }

    fn fail<T>(&self, span: Span, code: Code, message: impl Into<String>) -> Result<T> {
        Err(Box::new(Diagnostic::error(self.file, span, code, message)))
    }

    fn place(&self, span: &granit_parser::Span) -> Span {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let same_line = span.start.line() == span.end.line();
        Span {
            line: number(span.start.line()).saturating_add(self.lines_above),
            column: number(span.start.col()).saturating_add(1),
            len: if same_line { number(span.end.col().saturating_sub(span.start.col())) } else { 0 },
        }
    }

    fn syntax_error(&self, error: &granit_parser::ScanError) -> Box<Diagnostic> {
        let marker = *error.marker();
        let at = self.place(&granit_parser::Span::new(marker, marker));
        if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
            return Box::new(Diagnostic::error(self.file, at, codes::LIMIT_EXCEEDED, too_deep()));
        }
        if matches!(error.kind(), ErrorKind::UnknownAnchor) {
            let found = Diagnostic::error(
                self.file,
                at,
                codes::BAD_ALIAS,
                "the alias names no anchor of this document",
            );
            return Box::new(
                found.with_help("define it above with `&name`, or put a text that begins with `*` in quotes"),
            );
        }
        Box::new(Diagnostic::error(
            self.file,
            at,
            codes::SYNTAX,
            format!("this is no YAML: {}", error.kind()),
        ))
    }

    fn count(&mut self, more: usize, at: Span) -> Result<()> {
        self.nodes += more;
        if self.nodes > limits::NODES {
            return self.fail(
                at,
                codes::LIMIT_EXCEEDED,
                format!("the document has more than {} values", limits::NODES),
            );
        }
        Ok(())
    }

    fn begin(&mut self, content: Content, anchor: usize, tag: Option<&Tag>, span: Span) -> Result<()> {
        if let Some(tag) =
            tag.filter(|tag| !(tag.is_yaml_core_schema() && matches!(tag.suffix(), "map" | "seq")))
        {
            return self.fail(span, codes::SYNTAX, format!("the tag `{tag}` is not supported"));
        }
        if self.open.len() == limits::DEPTH {
            return self.fail(span, codes::LIMIT_EXCEEDED, too_deep());
        }
        if self.awaits_key() {
            return self.fail(span, codes::SYNTAX, "a key must be a text");
        }
        self.count(1, span)?;
        if anchor > 0 {
            self.open_anchors.push(anchor);
        }
        self.open.push(Open { content, span, anchor, nodes_before: self.nodes - 1, depth: 1 });
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(Open { content, span, anchor, nodes_before, depth }) = self.open.pop() else {
            return Ok(());
        };
        let value = match content {
            Content::Seq(items) => Value::Seq(items),
            Content::Map { mut entries, mut seen, merges, .. } => {
                for merge in merges {
                    self.merge(merge, &mut entries, &mut seen)?;
                }
                Value::Map(entries)
            }
        };
        if anchor > 0 {
            self.open_anchors.retain(|open| *open != anchor);
        }
        self.place_node(Node { value, span }, anchor, self.nodes - nodes_before, depth)
    }

    /// Adds the entries of a merge key's mapping (or list of mappings) that the mapping itself does not have.
    fn merge(&self, merged: Node, entries: &mut Vec<Entry>, seen: &mut HashMap<String, u32>) -> Result<()> {
        match merged.value {
            Value::Map(more) => {
                for entry in more {
                    if !seen.contains_key(&entry.key) {
                        seen.insert(entry.key.clone(), entry.key_span.line);
                        entries.push(entry);
                    }
                }
                Ok(())
            }
            Value::Seq(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
                items.into_iter().try_for_each(|item| self.merge(item, entries, seen))
            }
            _ => self.fail(merged.span, codes::WRONG_TYPE, "`<<` takes a mapping or a list of mappings"),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        span: Span,
    ) -> Result<()> {
        let is_text = match tag {
            None => style != ScalarStyle::Plain,
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix() == "str" => true,
            Some(tag) => return self.fail(span, codes::SYNTAX, format!("the tag `{tag}` is not supported")),
        };
        self.count(1, span)?;
        if self.awaits_key() {
            // A key is a text whatever it looks like: `5xx:` and `503:` alike.
            let value = Value::Text(text.to_owned());
            return self.place_node(Node { value, span }, anchor, 1, 0);
        }
        let value = if is_text { Value::Text(text.to_owned()) } else { plain(text) };
        self.place_node(Node { value, span }, anchor, 1, 0)
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<()> {
        self.aliases += 1;
        if self.aliases > limits::ALIASES {
            return self.fail(
                span,
                codes::LIMIT_EXCEEDED,
                format!("the document has more than {} aliases", limits::ALIASES),
            );
        }
        let Some(anchored) = self.anchors.get(&id) else {
            let message = if self.open_anchors.contains(&id) {
                "the alias stands within the value that it names: that value would contain itself"
            } else {
                "the alias names no anchor of this document"
            };
            return self.fail(span, codes::BAD_ALIAS, message);
        };
        let (nodes, depth) = (anchored.nodes, anchored.depth);
        self.aliased += nodes;
        if self.aliased > limits::ALIASED_NODES {
            let message =
                format!("aliases blow the document up by more than {} values", limits::ALIASED_NODES);
            let found = Diagnostic::error(self.file, span, codes::LIMIT_EXCEEDED, message);
            return Err(Box::new(found.with_help("write the values out, or in objects of their own")));
        }
        if self.open.len() + depth > limits::DEPTH {
            let message = format!("aliases nest mappings and lists more than {} deep", limits::DEPTH);
            return self.fail(span, codes::LIMIT_EXCEEDED, message);
        }
        let node = anchored.node.clone();
        self.count(nodes, span)?;
        self.place_node(node, 0, nodes, depth)
    }

    /// What was read so far, as if all that is open ended here.
    fn part(mut self) -> Option<Node> {
        while let Some(Open { content, span, .. }) = self.open.pop() {
            let value = match content {
                Content::Seq(items) => Value::Seq(items),
                Content::Map { entries, .. } => Value::Map(entries),
            };
            let node = Node { value, span };
            match self.open.last_mut().map(|parent| &mut parent.content) {
                None => self.done = Some(node),
                Some(Content::Seq(items)) => items.push(node),
                Some(Content::Map { entries, key, .. }) => {
                    let key = key.take();
                    entries.extend(key.map(|(key, key_span)| Entry { key, key_span, value: node }));
                }
            }
        }
        self.done
    }

    /// Whether the next node is a mapping's key.
    fn awaits_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { content: Content::Map { key: None, .. }, .. }))
    }

    fn place_node(&mut self, node: Node, anchor: usize, nodes: usize, depth: usize) -> Result<()> {
        if anchor > 0 {
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, depth });
        }
        let Some(parent) = self.open.last_mut() else {
            self.done = Some(node);
            return Ok(());
        };
        parent.depth = parent.depth.max(depth + 1);
        match &mut parent.content {
            Content::Seq(items) => items.push(node),
            Content::Map { key: waiting @ None, .. } => {
                let Value::Text(key) = node.value else {
                    return self.fail(node.span, codes::SYNTAX, "a key must be a text");
                };
                *waiting = Some((key, node.span));
            }
            Content::Map { entries, seen, key: waiting, merges } => {
                let Some((key, key_span)) = waiting.take() else { return Ok(()) };
                if key == "<<" {
                    merges.push(node);
                    return Ok(());
                }
                if let Some(first) = seen.insert(key.clone(), key_span.line) {
                    let message =
                        format!("the key `{key}` stands in this mapping twice, first in line {first}");
                    return self.fail(key_span, codes::DUPLICATE_KEY, message);
                }
                entries.push(Entry { key, key_span, value: node });
            }
        }
        Ok(())
    }
}

fn too_deep() -> String {
    format!("mappings and lists are nested more than {} deep", limits::DEPTH)
}

/// A plain scalar by the core schema (YAML 1.2.2, section 10.3.2). A number with a leading zero stays a text: readers
/// of YAML 1.1, Kubernetes' among them, would take it for octal.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.len() <= 30 && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        let ambiguous = digits.len() > 1 && digits.starts_with('0');
        if let (false, Ok(number)) = (ambiguous, text.parse()) {
            return Value::Int(number);
        }
    }
    let float_like = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b))
        && digits.contains(['.', 'e', 'E']);
    match text.parse::<f64>() {
        Ok(number) if float_like && number.is_finite() => Value::Float(number),
        _ => Value::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests;
