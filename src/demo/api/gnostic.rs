//! The protobuf form of an OpenAPI version 2 document that kubectl reads (gnostic's `OpenAPIv2.proto`). Written by
//! hand for what the documents of this API contain.

use serde_json::{Map, Value};

/// Encodes a document (`Document`).
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, &document["swagger"]);
    message.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    message.message(8, |paths| {
        for (name, item) in entries(&document["paths"]) {
            paths.named(2, name, |value| path_item(value, item));
        }
    });
    message.message(9, |definitions| {
        for (name, definition) in entries(&document["definitions"]) {
            definitions.named(1, name, |value| schema(value, definition));
        }
    });
    message.0
}

/// `PathItem`.
fn path_item(message: &mut Message, item: &Value) {
    for (number, method) in [(3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(operation) = item.get(method) {
            message.message(number, |value| self::operation(value, operation));
        }
    }
}

/// `Operation`.
fn operation(message: &mut Message, operation: &Value) {
    message.text(5, &operation["operationId"]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        // ParametersItem, Parameter, NonBodyParameter, QueryParameterSubSchema.
        message.message(8, |item| {
            item.message(1, |parameters| {
                parameters.message(2, |non_body| {
                    non_body.message(3, |query| {
                        query.text(2, &parameter["in"]);
                        query.text(4, &parameter["name"]);
                        query.text(6, &parameter["type"]);
                    });
                });
            });
        });
    }
    message.message(9, |responses| {
        for (code, response) in entries(&operation["responses"]) {
            // NamedResponseValue, ResponseValue, Response.
            responses.named(1, code, |value| value.message(1, |r| r.text(1, &response["description"])));
        }
    });
    extensions(message, 13, operation);
}

/// `Schema`.
fn schema(message: &mut Message, value: &Value) {
    message.text(1, &value["$ref"]);
    message.text(2, &value["format"]);
    message.text(4, &value["description"]);
    for required in value["required"].as_array().into_iter().flatten() {
        message.text(19, required);
    }
    if let Some(additional) = value.get("additionalProperties") {
        message.message(21, |item| item.message(1, |inner| schema(inner, additional)));
    }
    if value["type"].is_string() {
        message.message(22, |kind| kind.text(1, &value["type"]));
    }
    if let Some(items) = value.get("items") {
        message.message(23, |item| item.message(1, |inner| schema(inner, items)));
    }
    if let Some(properties) = value.get("properties") {
        message.message(25, |message| {
            for (name, property) in entries(properties) {
                message.named(1, name, |inner| schema(inner, property));
            }
        });
    }
    extensions(message, 31, value);
}

/// `NamedAny` with the value as YAML, of which JSON is a part.
fn extensions(message: &mut Message, number: u32, value: &Value) {
    for (name, extension) in entries(value).filter(|(name, _)| name.starts_with("x-")) {
        message.named(number, name, |any| any.bytes(2, extension.to_string().as_bytes()));
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// A message as far as it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// A string field, unless there is none.
    fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(number, text.as_bytes());
        }
    }

    /// A message field.
    fn message(&mut self, number: u32, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(number, &inner.0);
    }

    /// An entry of a map: name (1) and value (2).
    fn named(&mut self, number: u32, name: &str, fill: impl FnOnce(&mut Self)) {
        self.message(number, |entry| {
            entry.bytes(1, name.as_bytes());
            entry.message(2, fill);
        });
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_begins_with_its_version() {
        let bytes = encode(&json!({"swagger": "2.0", "info": {"title": "T", "version": "1"}}));
        assert_eq!(bytes, b"\x0a\x032.0\x12\x06\x0a\x01T\x12\x011\x42\x00\x4a\x00");
    }
}
