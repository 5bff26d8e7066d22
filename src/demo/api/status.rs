//! `Status` answers, worded as `k8s.io/apimachinery/pkg/api/errors` words them.

use http::StatusCode;
use serde::Serialize;

use super::resources::{Resource, qualified};

/// A request that failed, as the client is told.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    /// HTTP status code.
    pub code: StatusCode,
    /// The answer's body.
    pub status: Box<Status>,
}

/// A `meta/v1` `Status`. The fields stand in the order in which a real API server writes them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    metadata: Empty,
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Empty {}

/// `StatusDetails`: what the message speaks of.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
}

/// `StatusCause`: one of several reasons.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Cause {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Status {
    /// `{"metadata":{},"status":"Success"}`: how a command that exited with 0 is reported.
    pub fn command_success() -> Self {
        Self::new("Success", "", String::new(), None, None, false)
    }

    /// A failed command (`k8s.io/client-go/tools/remotecommand` reads reason and causes); no kind, as captured.
    pub fn command_failure(reason: &'static str, message: String, causes: Vec<Cause>, code: Option<u16>) -> Self {
        let details = Details { causes, ..Details::default() };
        Self::new("Failure", reason, message, Some(details), code, false)
    }

    /// The answer to a successful delete.
    pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Self {
        let details = Details { uid: uid.to_owned(), ..details_of(resource, name) };
        Self::new("Success", "", String::new(), Some(details), None, true)
    }

    /// The JSON text.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and integers only: serialization cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn new(
        status: &'static str,
        reason: &'static str,
        message: String,
        details: Option<Details>,
        code: Option<u16>,
        typed: bool,
    ) -> Self {
        Self {
            kind: typed.then_some("Status"),
            api_version: typed.then_some("v1"),
            metadata: Empty {},
            status,
            message,
            reason,
            details,
            code,
        }
    }
}

impl ApiError {
    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message, None)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", None)
    }

    /// 403 with a finished message.
    pub fn forbidden(message: String, details: Details) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message, Some(details))
    }

    /// 404 of one object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified_plural());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(details_of(resource, name)))
    }

    /// 404 of a path within the API that nothing serves.
    pub fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(Details::default()))
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message, Some(Details::default()))
    }

    /// 406.
    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message, Some(Details::default()))
    }

    /// 409 of a create.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified_plural());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message, Some(details_of(resource, name)))
    }

    /// 409 of a write with a resourceVersion that is no longer the newest.
    pub fn modified_meanwhile(resource: &Resource, name: &str) -> Self {
        let message = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, message)
    }

    /// 409 of a write whose precondition does not hold.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified_plural());
        Self::new(StatusCode::CONFLICT, "Conflict", message, Some(details_of(resource, name)))
    }

    /// 409 of a server-side apply over fields of other managers.
    pub fn apply_conflict(causes: Vec<Cause>) -> Self {
        let list: Vec<&str> = causes.iter().map(|c| c.message.as_str()).collect();
        let message = match causes.as_slice() {
            [only] => format!("Apply failed with 1 conflict: {}: {}", only.message, only.field),
            _ => format!("Apply failed with {} conflicts: {}", causes.len(), list.join("\n")),
        };
        let details = Details { causes, ..Details::default() };
        Self::new(StatusCode::CONFLICT, "Conflict", message, Some(details))
    }

    /// 410: a resourceVersion or continue token older than the history kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message, None)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message, None)
    }

    /// 415.
    pub fn unsupported_media_type(message: String) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message, None)
    }

    /// 422 with the fields that are wrong.
    pub fn invalid(resource: &Resource, name: &str, causes: Vec<Cause>) -> Self {
        let wrong: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let wrong = match wrong.as_slice() {
            [only] => only.clone(),
            _ => format!("[{}]", wrong.join(", ")),
        };
        let message = format!("{} \"{name}\" is invalid: {wrong}", resource.qualified_kind());
        let details = Details { kind: resource.kind.to_owned(), causes, ..details_of(resource, name) };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, Some(details))
    }

    /// 507: a bound of this sample API is reached.
    pub fn full(message: String) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "InternalError", message, None)
    }

    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>, details: Option<Details>) -> Self {
        let status = Status::new("Failure", reason, message.into(), details, Some(code.as_u16()), true);
        Self { code, status: Box::new(status) }
    }
}

impl Cause {
    /// `FieldValueInvalid`, as `field.Invalid` prints it.
    pub fn invalid_value(field: impl Into<String>, value: &str, why: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {}: {why}", quoted(value)),
            field: field.into(),
        }
    }

    /// `FieldValueRequired`, as `field.Required` prints it.
    pub fn required(field: &str, why: &str) -> Self {
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Self { reason: "FieldValueRequired", message, field: field.to_owned() }
    }
}

/// Details that name one object.
pub(super) fn details_of(resource: &Resource, name: &str) -> Details {
    Details {
        name: name.to_owned(),
        group: resource.group.to_owned(),
        kind: resource.plural.to_owned(),
        ..Details::default()
    }
}

/// The text of a 403 of the built-in authorizer: `responsewriters.forbiddenMessage`.
pub(super) fn forbidden_message(
    user: &str,
    verb: &str,
    group: &str,
    resource: &str,
    namespace: Option<&str>,
) -> String {
    let what = format!("User {} cannot {verb} resource \"{resource}\" in API group \"{group}\"", quoted(user));
    match namespace {
        Some(namespace) => format!("{what} in the namespace \"{namespace}\""),
        None => format!("{what} at the cluster scope"),
    }
}

/// `pods is forbidden: …` or `pods "web" is forbidden: …`: `errors.NewForbidden`.
pub(super) fn forbidden_subject(plural: &str, group: &str, name: &str) -> String {
    let resource = qualified(plural, group);
    if name.is_empty() { format!("{resource} is forbidden") } else { format!("{resource} \"{name}\" is forbidden") }
}

/// The text in double quotes, with escapes where needed.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::api::resources::pods;

    #[test]
    fn a_missing_pod_reads_as_a_real_api_server_writes_it() {
        let error = ApiError::not_found(pods(), "nope");
        let expected = concat!(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
            r#""message":"pods \"nope\" not found","reason":"NotFound","#,
            r#""details":{"name":"nope","kind":"pods"},"code":404}"#
        );
        assert_eq!(String::from_utf8(error.status.to_json()).unwrap(), expected);
    }

    #[test]
    fn a_successful_command_has_no_kind() {
        assert_eq!(Status::command_success().to_json(), br#"{"metadata":{},"status":"Success"}"#);
    }
}
