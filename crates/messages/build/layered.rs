//! Writes an `impl Layered` for a message and for each that is a part of it, field by field from the schema: a field that
//! comes later cannot be forgotten.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

/// Messages of which no part has a meaning without the others.
const WHOLE: [&str; 2] = [".meshwork.v1.Share", ".meshwork.v1.Retry.On"];

/// The text for `root` and its parts.
pub(crate) fn generate(files: &[FileDescriptorProto], root: &str) -> String {
    let mut known = BTreeMap::new();
    for file in files {
        let package = format!(".{}", file.package());
        file.message_type.iter().for_each(|message| collect(&package, message, &mut known));
    }
    let (mut text, mut done, mut left) = (String::new(), BTreeSet::new(), vec![root.to_owned()]);
    while let Some(name) = left.pop() {
        if done.insert(name.clone()) {
            write_impl(&name, known[&name], &mut text, &mut left);
        }
    }
    text
}

fn collect<'f>(
    within: &str,
    message: &'f DescriptorProto,
    known: &mut BTreeMap<String, &'f DescriptorProto>,
) {
    let name = format!("{within}.{}", message.name());
    message.nested_type.iter().for_each(|nested| collect(&name, nested, known));
    known.insert(name, message);
}

/// How a field is laid over another.
enum How<'f> {
    /// Said where it is not its type's default.
    Plain,
    /// Said where it is there.
    Whole,
    /// The fields of this message are laid over each other.
    Deep(&'f str),
    /// One of several.
    OneOf(Vec<&'f FieldDescriptorProto>),
}

fn write_impl(name: &str, message: &DescriptorProto, text: &mut String, left: &mut Vec<String>) {
    let path = rust_path(name);
    let (mut or, mut said, mut all) = (String::new(), String::new(), String::new());
    for (field, how) in fields(message) {
        let kind = match how {
            How::Plain => "plain",
            How::Whole => "whole",
            How::Deep(_) => "deep",
            How::OneOf(of) => {
                write_one_of(&path, &field, &of, (&mut or, &mut said, &mut all), left);
                continue;
            }
        };
        or += &format!("{field}: {kind}(&self.{field}, &wider.{field}),");
        said += &format!("{kind}_said(&self.{field}, at, \"{field}\", tell);");
        if let How::Deep(part) = how {
            left.push(part.to_owned());
            all += &format!("deep_fields::<{}>(at, \"{field}\", tell);", rust_path(part));
        } else {
            all += &format!("tell(below(at, \"{field}\"));");
        }
    }
    *text += &format!(
        "impl Layered for {path} {{
            fn or(&self, wider: &Self) -> Self {{ Self {{ {or} }} }}
            fn said(&self, at: &str, tell: &mut dyn FnMut(String)) {{ {said} }}
            fn fields(at: &str, tell: &mut dyn FnMut(String)) {{ {all} }}
        }}"
    );
}

fn write_one_of(
    message: &str,
    field: &str,
    of: &[&FieldDescriptorProto],
    (or, said, all): (&mut String, &mut String, &mut String),
    left: &mut Vec<String>,
) {
    let module = rust_path_of_module(message);
    let (mut same, mut told) = (String::new(), String::new());
    for option in of {
        let name = option.name();
        let variant = format!("{module}::{}::{}", camel(field), camel(name));
        if option.r#type() == Type::Message {
            left.push(option.type_name().to_owned());
            let part = rust_path(option.type_name());
            let both = format!("(Some({variant}(own)), Some({variant}(other)))");
            same += &format!("{both} => Some({variant}(own.or(other))),");
            told += &format!("Some({variant}(own)) => own_said(own, at, \"{name}\", tell),");
            *all += &format!("deep_fields::<{part}>(at, \"{name}\", tell);");
        } else {
            told += &format!("Some({variant}(_)) => tell(below(at, \"{name}\")),");
            *all += &format!("tell(below(at, \"{name}\"));");
        }
    }
    let parts = format!("&self.{field}, &wider.{field}");
    *or += &match same.as_str() {
        "" => format!("{field}: whole({parts}),"),
        same => format!("{field}: match ({parts}) {{ {same} (own, other) => whole(own, other) }},"),
    };
    *said += &format!("match &self.{field} {{ {told} None => {{}} }}");
}

/// The fields of the Rust type.
fn fields(message: &DescriptorProto) -> Vec<(String, How<'_>)> {
    let mut all: Vec<(String, How<'_>)> = Vec::new();
    for field in &message.field {
        if let (Some(index), false) = (field.oneof_index, field.proto3_optional()) {
            let name = message.oneof_decl[usize::try_from(index).expect("an index")].name().to_owned();
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, How::OneOf(of))) => of.push(field),
                _ => all.push((name, How::OneOf(vec![field]))),
            }
            continue;
        }
        let how = match (field.label(), field.r#type()) {
            (Label::Repeated, _) => How::Plain,
            (_, Type::Message) if WHOLE.contains(&field.type_name()) => How::Whole,
            (_, Type::Message) => How::Deep(field.type_name()),
            _ if field.proto3_optional() => How::Whole,
            _ => How::Plain,
        };
        all.push((field.name().to_owned(), how));
    }
    all
}

/// `.meshwork.v1.OutlierDetection.SuccessRate` → `v1::outlier_detection::SuccessRate`.
fn rust_path(name: &str) -> String {
    let mut parts: Vec<&str> = name.strip_prefix(".meshwork.").expect("our messages").split('.').collect();
    let last = parts.pop().expect("a name");
    let modules: Vec<String> = parts.into_iter().map(snake).collect();
    format!("{}::{last}", modules.join("::"))
}

/// Where the types within a message are.
fn rust_path_of_module(message: &str) -> String {
    let (modules, last) = message.rsplit_once("::").expect("it is in a module");
    format!("{modules}::{}", snake(last))
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

fn camel(name: &str) -> String {
    let part = |part: &str| part[..1].to_uppercase() + &part[1..];
    name.split('_').map(part).collect()
}
