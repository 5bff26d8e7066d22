//! Reads request bodies in Kubernetes' protobuf encoding: an envelope `runtime.Unknown` after the magic `k8s\0`
//! (`k8s.io/apimachinery/pkg/runtime/serializer/protobuf`), and of the messages within those that kubectl sends.
//! Field numbers follow the `generated.proto` files of `k8s.io/api`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::status::ApiError;

/// The media type of these bodies.
pub(super) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; no real object comes near.
const MAX_DEPTH: usize = 16;

/// The fields of one message: number, JSON name, type.
type Message = &'static [(u64, &'static str, Kind)];

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bytes,
    Bool,
    Integer,
    One(Message),
    Many(Message),
    ManyTexts,
    /// A map; its entries are messages of key (1) and value (2).
    Map(&'static Kind),
    /// `meta/v1` `Time` and `MicroTime`.
    Time,
    /// `authentication/v1` `ExtraValue`: a list of texts in a message of its own.
    ExtraValue,
    /// `intstr.IntOrString`.
    IntegerOrText,
}

/// Decodes a body into the JSON object it stands for. Errors: 400 for what is malformed, 415 for a kind this API
/// reads in JSON only.
pub(super) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let malformed = || ApiError::bad_request("the protobuf body is malformed");
    let unknown = body.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let envelope = read_message(unknown, ENVELOPE, 0).ok_or_else(malformed)?;
    let raw = envelope["raw"].as_str().unwrap_or_default();
    let raw = STANDARD.decode(raw).map_err(|_| malformed())?;
    let (api_version, kind) = (&envelope["typeMeta"]["apiVersion"], &envelope["typeMeta"]["kind"]);
    let message = message_of(kind.as_str().unwrap_or_default())
        .ok_or_else(|| ApiError::unsupported_media_type(format!("{kind} is read as application/json only")))?;
    let mut object = read_message(&raw, message, 0).ok_or_else(malformed)?;
    object["apiVersion"] = api_version.clone();
    object["kind"] = kind.clone();
    Ok(object)
}

fn message_of(kind: &str) -> Option<Message> {
    Some(match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Namespace" | "ServiceAccount" => METADATA_ONLY,
        "Lease" => LEASE,
        "Deployment" => DEPLOYMENT,
        "Service" => SERVICE,
        "DeleteOptions" => DELETE_OPTIONS,
        "SelfSubjectReview" => METADATA_ONLY,
        "SelfSubjectRulesReview" => SELF_SUBJECT_RULES_REVIEW,
        "SelfSubjectAccessReview" => SELF_SUBJECT_ACCESS_REVIEW,
        "SubjectAccessReview" => SUBJECT_ACCESS_REVIEW,
        _ => return None,
    })
}

use Kind::{Bool, Bytes, ExtraValue, Integer, IntegerOrText, Many, ManyTexts, One, Text, Time};

const ENVELOPE: Message = &[(1, "typeMeta", One(&[(1, "apiVersion", Text), (2, "kind", Text)])), (2, "raw", Bytes)];

const OWNER_REFERENCE: Message = &[
    (1, "kind", Text),
    (3, "name", Text),
    (4, "uid", Text),
    (5, "apiVersion", Text),
    (6, "controller", Bool),
    (7, "blockOwnerDeletion", Bool),
];

const OBJECT_META: Message = &[
    (1, "name", Text),
    (2, "generateName", Text),
    (3, "namespace", Text),
    (5, "uid", Text),
    (6, "resourceVersion", Text),
    (11, "labels", Kind::Map(&Text)),
    (12, "annotations", Kind::Map(&Text)),
    (13, "ownerReferences", Many(OWNER_REFERENCE)),
    (14, "finalizers", ManyTexts),
];

const METADATA_ONLY: Message = &[(1, "metadata", One(OBJECT_META))];

const CONFIG_MAP: Message = &[
    (1, "metadata", One(OBJECT_META)),
    (2, "data", Kind::Map(&Text)),
    (3, "binaryData", Kind::Map(&Bytes)),
    (4, "immutable", Bool),
];

const SECRET: Message = &[
    (1, "metadata", One(OBJECT_META)),
    (2, "data", Kind::Map(&Bytes)),
    (3, "type", Text),
    (4, "stringData", Kind::Map(&Text)),
    (5, "immutable", Bool),
];

const LEASE: Message = &[
    (1, "metadata", One(OBJECT_META)),
    (
        2,
        "spec",
        One(&[
            (1, "holderIdentity", Text),
            (2, "leaseDurationSeconds", Integer),
            (3, "acquireTime", Time),
            (4, "renewTime", Time),
            (5, "leaseTransitions", Integer),
        ]),
    ),
];

/// As much as `kubectl create deployment` writes; anything else of a pod is left out.
const DEPLOYMENT: Message = &[
    (1, "metadata", One(OBJECT_META)),
    (
        2,
        "spec",
        One(&[
            (1, "replicas", Integer),
            (2, "selector", One(&[(1, "matchLabels", Kind::Map(&Text))])),
            (3, "template", One(&[(1, "metadata", One(OBJECT_META)), (2, "spec", One(POD_SPEC))])),
        ]),
    ),
];

const POD_SPEC: Message = &[
    (2, "containers", Many(CONTAINER)),
    (3, "restartPolicy", Text),
    (8, "serviceAccountName", Text),
    (10, "nodeName", Text),
];

const CONTAINER: Message = &[
    (1, "name", Text),
    (2, "image", Text),
    (3, "command", ManyTexts),
    (4, "args", ManyTexts),
    (6, "ports", Many(&[(1, "name", Text), (3, "containerPort", Integer), (4, "protocol", Text)])),
    (7, "env", Many(&[(1, "name", Text), (2, "value", Text)])),
    (14, "imagePullPolicy", Text),
    (16, "stdin", Bool),
    (18, "tty", Bool),
];

/// As much as `kubectl create service` writes.
const SERVICE: Message = &[
    (1, "metadata", One(OBJECT_META)),
    (
        2,
        "spec",
        One(&[
            (
                1,
                "ports",
                Many(&[
                    (1, "name", Text),
                    (2, "protocol", Text),
                    (3, "port", Integer),
                    (4, "targetPort", IntegerOrText),
                    (5, "nodePort", Integer),
                ]),
            ),
            (2, "selector", Kind::Map(&Text)),
            (3, "clusterIP", Text),
            (4, "type", Text),
            (10, "externalName", Text),
        ]),
    ),
];

const DELETE_OPTIONS: Message = &[
    (1, "gracePeriodSeconds", Integer),
    (2, "preconditions", One(&[(1, "uid", Text), (2, "resourceVersion", Text)])),
    (4, "propagationPolicy", Text),
    (5, "dryRun", ManyTexts),
];

const RESOURCE_ATTRIBUTES: Message = &[
    (1, "namespace", Text),
    (2, "verb", Text),
    (3, "group", Text),
    (4, "version", Text),
    (5, "resource", Text),
    (6, "subresource", Text),
    (7, "name", Text),
];

const NON_RESOURCE_ATTRIBUTES: Message = &[(1, "path", Text), (2, "verb", Text)];

const SELF_SUBJECT_ACCESS_REVIEW: Message = &[
    (1, "metadata", One(OBJECT_META)),
    (
        2,
        "spec",
        One(&[
            (1, "resourceAttributes", One(RESOURCE_ATTRIBUTES)),
            (2, "nonResourceAttributes", One(NON_RESOURCE_ATTRIBUTES)),
        ]),
    ),
];

const SELF_SUBJECT_RULES_REVIEW: Message =
    &[(1, "metadata", One(OBJECT_META)), (2, "spec", One(&[(1, "namespace", Text)]))];

const SUBJECT_ACCESS_REVIEW: Message = &[
    (1, "metadata", One(OBJECT_META)),
    (
        2,
        "spec",
        One(&[
            (1, "resourceAttributes", One(RESOURCE_ATTRIBUTES)),
            (2, "nonResourceAttributes", One(NON_RESOURCE_ATTRIBUTES)),
            (3, "user", Text),
            (4, "groups", ManyTexts),
            (5, "extra", Kind::Map(&ExtraValue)),
            (6, "uid", Text),
        ]),
    ),
];

/// A field's value on the wire.
enum Wire<'a> {
    Number(u64),
    Slice(&'a [u8]),
}

/// Reads one message. Go writes empty strings for what is not set; they are left out.
fn read_message(mut bytes: &[u8], message: Message, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut object = Map::new();
    while !bytes.is_empty() {
        let (number, wire) = next_field(&mut bytes)?;
        let Some((_, name, kind)) = message.iter().find(|(n, _, _)| *n == number) else {
            continue;
        };
        match (kind, wire) {
            (Many(message), Wire::Slice(slice)) => push(&mut object, name, read_message(slice, message, depth + 1)?),
            (ManyTexts, Wire::Slice(slice)) => push(&mut object, name, text(slice)?),
            (Kind::Map(value), Wire::Slice(slice)) => {
                let (key, value) = read_entry(slice, value, depth)?;
                let map = object.entry(*name).or_insert_with(|| Value::Object(Map::new()));
                map.as_object_mut()?.insert(key, value);
            }
            (kind, wire) => {
                let value = read_single(kind, &wire, depth)?;
                if value != "" && value != Value::Null {
                    object.insert((*name).to_owned(), value);
                }
            }
        }
    }
    Some(Value::Object(object))
}

fn push(object: &mut Map<String, Value>, name: &str, value: Value) {
    if let Value::Array(list) = object.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
        list.push(value);
    }
}

fn read_single(kind: &Kind, wire: &Wire<'_>, depth: usize) -> Option<Value> {
    Some(match (kind, wire) {
        (Text, Wire::Slice(slice)) => text(slice)?,
        (Bytes, Wire::Slice(slice)) => STANDARD.encode(slice).into(),
        (Bool, Wire::Number(number)) => (*number != 0).into(),
        // Negative int32 and int64 are sign-extended to 64 bits.
        (Integer, Wire::Number(number)) => number.cast_signed().into(),
        (One(message), Wire::Slice(slice)) => read_message(slice, message, depth + 1)?,
        (Time, Wire::Slice(slice)) => read_time(slice)?,
        (IntegerOrText, Wire::Slice(slice)) => {
            let mut value =
                read_message(slice, &[(1, "type", Integer), (2, "number", Integer), (3, "text", Text)], depth + 1)?;
            let is_text = value["type"] == 1;
            value[if is_text { "text" } else { "number" }].take()
        }
        (ExtraValue, Wire::Slice(slice)) => read_message(slice, &[(1, "items", ManyTexts)], depth + 1)?["items"].take(),
        _ => return None,
    })
}

fn read_entry(mut bytes: &[u8], kind: &Kind, depth: usize) -> Option<(String, Value)> {
    let (mut key, mut value) = (String::new(), Value::from(""));
    while !bytes.is_empty() {
        match next_field(&mut bytes)? {
            (1, Wire::Slice(slice)) => key = std::str::from_utf8(slice).ok()?.to_owned(),
            (2, wire) => value = read_single(kind, &wire, depth + 1)?,
            _ => {}
        }
    }
    Some((key, value))
}

fn read_time(slice: &[u8]) -> Option<Value> {
    let time = read_message(slice, &[(1, "seconds", Integer), (2, "nanos", Integer)], 0)?;
    let (seconds, nanos) = (time["seconds"].as_i64().unwrap_or(0), time["nanos"].as_i64().unwrap_or(0));
    let time = jiff::Timestamp::new(seconds, i32::try_from(nanos).ok()?).ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into())
}

fn text(slice: &[u8]) -> Option<Value> {
    Some(std::str::from_utf8(slice).ok()?.into())
}

fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let tag = varint(bytes)?;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => Wire::Slice(take(bytes, 8)?),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Slice(take(bytes, length)?)
        }
        5 => Wire::Slice(take(bytes, 4)?),
        _ => return None,
    };
    Some((tag >> 3, wire))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// As kubectl 1.33 sends `create configmap cap-cm` (recorded).
    const CONFIG_MAP_BODY: &[u8] =
        b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap\x12\x1c\n\x1a\n\x06cap-cm\x12\0\x1a\x04demo\"\0*\x002\x008\0B\0\x1a\0\"\0";

    #[test]
    fn a_config_map_of_kubectl_is_read() {
        let object = decode(CONFIG_MAP_BODY).unwrap();
        let expected =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cap-cm", "namespace": "demo"}});
        assert_eq!(object, expected);
    }

    #[test]
    fn an_access_review_of_kubectl_is_read() {
        let body = b"k8s\0\n2\n\x17authorization.k8s.io/v1\x12\x17SelfSubjectAccessReview\x12@\n\x10\n\0\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\"\n \n\x04demo\x12\x06create\x1a\0\"\0*\x04pods2\0:\x04exec\x1a\x08\x08\0\x12\0\x1a\0 \0\x1a\0\"\0";
        let object = decode(body).unwrap();
        assert_eq!(object["spec"]["resourceAttributes"]["verb"], "create");
    }

    #[test]
    fn a_kind_that_is_not_known_asks_for_json() {
        let body = b"k8s\0\n\x09\n\x02v1\x12\x03Pod\x12\0";
        assert_eq!(decode(body).unwrap_err().code.as_u16(), 415);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode(&[b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap\x12", bytes.as_slice()].concat());
        }
    }
}
