//! Reading and writing objects (`k8s.io/apiserver/pkg/endpoints/handlers`).

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Shared,
    managed_fields::{self, Manager},
    objects, patch,
    payload::Payload,
    request::{Query, ResourceTarget},
    resources::{Resource, namespaces},
    response::{self, Item, List, ListMeta, Response, View},
    schemas,
    selector::Selector,
    status::{ApiError, Status},
    store::{Commit, Key},
    table,
};

/// A request for a stored resource, its body read.
pub(super) struct Call<'a> {
    pub api: &'a Shared,
    pub resource: &'static Resource,
    pub target: &'a ResourceTarget,
    pub query: &'a Query,
    pub headers: &'a HeaderMap,
    pub payload: Payload,
}

impl Call<'_> {
    /// Answers by verb.
    pub fn answer(self, verb: &str) -> Result<Response, ApiError> {
        if !self.resource.verbs.contains(&verb) {
            return Err(ApiError::method_not_allowed());
        }
        match (verb, self.target.subresource.as_deref()) {
            ("get", None | Some("status")) => self.get(),
            ("get", Some("scale")) => Ok(response::json(StatusCode::OK, &scale_of(&*self.current()?))),
            ("list", None) => self.list(),
            ("create", None) if self.target.name.is_none() => self.create(),
            ("update" | "patch", _) => self.change(verb == "patch"),
            ("delete", None) => self.delete(),
            ("deletecollection", None) => self.delete_collection(),
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn get(&self) -> Result<Response, ApiError> {
        let object = self.current()?;
        self.show(StatusCode::OK, &object)
    }

    fn list(&self) -> Result<Response, ApiError> {
        let selector = selector(self.query)?;
        let page = Page::parse(self.query, self.api.store.oldest())?;
        let after = page.after.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        let (revision, mut objects) = self.api.store.list(self.resource, self.target.namespace.as_deref(), after);
        objects.retain(|object| selector.matches(object));
        let metadata = page.cut(&mut objects, revision);
        self.show_list(objects, metadata)
    }

    fn create(&self) -> Result<Response, ApiError> {
        let mut object = self.take_object()?;
        let namespace = self.namespace();
        if self.resource.namespaced && self.api.store.get(&Key::new(namespaces(), "", &namespace)).is_none() {
            return Err(ApiError::not_found(namespaces(), &namespace));
        }
        objects::prepare_create(self.resource, &namespace, &mut object)?;
        managed_fields::record_update(None, &mut object, self.manager());
        let object = self.store_new(object)?;
        self.show(StatusCode::CREATED, &object)
    }

    fn change(&self, is_patch: bool) -> Result<Response, ApiError> {
        let media_type = self.payload.media_type().to_owned();
        if is_patch && media_type == "application/apply-patch+yaml" {
            return self.apply();
        }
        let given = self.take_object()?;
        let commit = commit(self.query)?;
        let changed = self.api.store.update(self.resource, &self.key(), commit, |before| {
            let mut after = self.view_of_subresource(before);
            if is_patch {
                apply_patch(&mut after, &given, &media_type)?;
            } else {
                after = given;
            }
            self.finish_change(before, after)
        })?;
        self.show_changed(StatusCode::OK, &changed)
    }

    fn apply(&self) -> Result<Response, ApiError> {
        if self.query.get("fieldManager").is_none_or(str::is_empty) {
            return Err(ApiError::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ));
        }
        let mut applied = self.take_object()?;
        objects::check_shape(self.resource, &applied)?;
        let name = self.key().name;
        objects::metadata_mut(&mut applied).insert("name".to_owned(), name.into());
        let force = self.query.flag("force");
        if self.api.store.get(&self.key()).is_none() {
            let mut object = managed_fields::apply(None, &applied, self.manager(), force)?;
            let fields = object["metadata"]["managedFields"].clone();
            objects::prepare_create(self.resource, &self.namespace(), &mut object)?;
            objects::metadata_mut(&mut object).insert("managedFields".to_owned(), fields);
            let object = self.store_new(object)?;
            return self.show(StatusCode::CREATED, &object);
        }
        let commit = commit(self.query)?;
        let changed = self.api.store.update(self.resource, &self.key(), commit, |before| {
            let mut after = managed_fields::apply(Some(before), &applied, self.manager(), force)?;
            check_revision(self.resource, before, &applied)?;
            objects::prepare_update(self.resource, before, &mut after)?;
            Ok(keep_times_if_unchanged(before, after))
        })?;
        self.show_changed(StatusCode::OK, &changed)
    }

    fn delete(&self) -> Result<Response, ApiError> {
        let options = self.payload.decode_optional()?;
        let in_body = options["dryRun"].as_array().is_some_and(|stages| stages.iter().any(|stage| stage == "All"));
        let commit = if in_body { Commit::DryRun } else { commit(self.query)? };
        let key = self.key();
        let removed = self.api.store.remove(self.resource, &key, commit, |object| {
            check_preconditions(self.resource, object, &options["preconditions"])
        })?;
        if commit == Commit::Keep {
            self.clean_up(&key);
        }
        let uid = removed["metadata"]["uid"].as_str().unwrap_or_default();
        Ok(response::json(StatusCode::OK, &Status::deleted(self.resource, &key.name, uid)))
    }

    fn delete_collection(&self) -> Result<Response, ApiError> {
        let (selector, commit) = (selector(self.query)?, commit(self.query)?);
        let namespace = self.target.namespace.as_deref();
        let (revision, mut objects) = self.api.store.list(self.resource, namespace, None);
        objects.retain(|object| selector.matches(object));
        for object in &objects {
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
            let key = Key::new(self.resource, text("namespace"), text("name"));
            // Somebody else may have removed it meanwhile, which is as good.
            if self.api.store.remove(self.resource, &key, commit, |_| Ok(())).is_ok() && commit == Commit::Keep {
                self.clean_up(&key);
            }
        }
        self.show_list(objects, ListMeta { resource_version: revision.to_string(), ..ListMeta::default() })
    }

    /// What goes with an object: everything in a namespace, the processes of a pod.
    fn clean_up(&self, key: &Key) {
        let gone = match self.resource.plural {
            "namespaces" => self.api.store.remove_namespace(&key.name),
            "pods" => vec![key.clone()],
            _ => Vec::new(),
        };
        for key in gone {
            self.api.pods.stop(&key.namespace, &key.name);
        }
    }

    fn finish_change(&self, before: &Value, mut after: Value) -> Result<Value, ApiError> {
        objects::check_shape(self.resource, &after)?;
        check_revision(self.resource, before, &after)?;
        let status_only = self.target.subresource.as_deref() == Some("status");
        let mut result = match self.target.subresource.as_deref() {
            Some("status") => merged(before, "status", after["status"].take()),
            Some("scale") => {
                let mut result = before.clone();
                result["spec"]["replicas"] = after["spec"]["replicas"].take();
                result
            }
            _ => after,
        };
        let new_status = result["status"].clone();
        objects::prepare_update(self.resource, before, &mut result)?;
        if status_only {
            result["status"] = new_status;
        }
        objects::metadata_mut(&mut result)
            .insert("managedFields".to_owned(), before["metadata"]["managedFields"].clone());
        managed_fields::record_update(Some(before), &mut result, self.manager());
        Ok(result)
    }

    fn view_of_subresource(&self, object: &Value) -> Value {
        if self.target.subresource.as_deref() == Some("scale") { scale_of(object) } else { object.clone() }
    }

    fn store_new(&self, object: Value) -> Result<Arc<Value>, ApiError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = Key::new(self.resource, &self.namespace(), name);
        self.api.store.create(self.resource, key, object, commit(self.query)?)
    }

    fn current(&self) -> Result<Arc<Value>, ApiError> {
        let key = self.key();
        self.api.store.get(&key).ok_or_else(|| ApiError::not_found(self.resource, &key.name))
    }

    /// The object in the body, its fields checked if the client wishes.
    fn take_object(&self) -> Result<Value, ApiError> {
        let object = self.payload.decode()?;
        if self.query.get("fieldValidation") == Some("Strict") && self.target.subresource.as_deref() != Some("scale") {
            schemas::check_fields(self.resource, &object)?;
        }
        Ok(object)
    }

    fn namespace(&self) -> String {
        self.target.namespace.clone().unwrap_or_default()
    }

    fn key(&self) -> Key {
        Key::new(self.resource, &self.namespace(), self.target.name.as_deref().unwrap_or_default())
    }

    /// `fieldManager`, else the first word of the user agent (`managerOrUserAgent`).
    fn manager(&self) -> Manager<'_> {
        let agent = self.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        let agent = agent.split('/').next().unwrap_or(agent);
        let name = self.query.get("fieldManager").filter(|name| !name.is_empty()).unwrap_or(agent);
        Manager { name, subresource: self.target.subresource.as_deref().unwrap_or_default() }
    }

    fn show_changed(&self, code: StatusCode, object: &Value) -> Result<Response, ApiError> {
        if self.target.subresource.as_deref() == Some("scale") {
            return Ok(response::json(code, &scale_of(object)));
        }
        self.show(code, object)
    }

    fn show(&self, code: StatusCode, object: &Value) -> Result<Response, ApiError> {
        Ok(match View::negotiate(self.headers)? {
            View::Object => response::json(code, object),
            View::Metadata => response::json(code, &table::partial_metadata("v1", object)),
            View::Table(version) => {
                let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                let metadata = ListMeta { resource_version: revision, ..ListMeta::default() };
                let objects = std::iter::once(object);
                response::json(code, &table::of_objects(self.resource, version, &metadata, objects, self.query))
            }
        })
    }

    fn show_list(&self, objects: Vec<Arc<Value>>, metadata: ListMeta) -> Result<Response, ApiError> {
        let (kind, api_version) = (format!("{}List", self.resource.kind), self.resource.group_version());
        Ok(match View::negotiate(self.headers)? {
            View::Object => {
                let items = objects.into_iter().map(Item).collect();
                response::json(StatusCode::OK, &List { kind, api_version, metadata, items })
            }
            View::Metadata => {
                let items: Vec<Value> = objects.iter().map(|object| table::partial_metadata("v1", object)).collect();
                let kind = "PartialObjectMetadataList";
                let list = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items});
                response::json(StatusCode::OK, &list)
            }
            View::Table(version) => {
                let objects = objects.iter().map(|object| &**object);
                let table = table::of_objects(self.resource, version, &metadata, objects, self.query);
                response::json(StatusCode::OK, &table)
            }
        })
    }
}

/// The selector of the query.
pub(super) fn selector(query: &Query) -> Result<Selector, ApiError> {
    Selector::parse(query.get("labelSelector"), query.get("fieldSelector"))
}

/// One page of a list (`limit`, `continue`).
struct Page {
    limit: Option<usize>,
    after: Option<(String, String)>,
    revision: Option<u64>,
}

impl Page {
    fn parse(query: &Query, oldest: u64) -> Result<Self, ApiError> {
        let limit = query.number("limit").filter(|limit| *limit > 0).and_then(|limit| usize::try_from(limit).ok());
        let Some(token) = query.get("continue").filter(|token| !token.is_empty()) else {
            return Ok(Self { limit, after: None, revision: None });
        };
        let invalid = || ApiError::bad_request("continue key is not valid");
        let token = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| invalid())?;
        let token: Value = serde_json::from_slice(&token).map_err(|_| invalid())?;
        let revision = token["rv"].as_u64().ok_or_else(invalid)?;
        if revision < oldest {
            return Err(ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result.",
            ));
        }
        let text = |key: &str| token[key].as_str().map(str::to_owned).ok_or_else(invalid);
        Ok(Self { limit, after: Some((text("namespace")?, text("start")?)), revision: Some(revision) })
    }

    /// Keeps what belongs to this page, and says how to go on.
    fn cut(&self, objects: &mut Vec<Arc<Value>>, revision: u64) -> ListMeta {
        let revision = self.revision.unwrap_or(revision);
        let mut metadata = ListMeta { resource_version: revision.to_string(), ..ListMeta::default() };
        let Some(limit) = self.limit.filter(|limit| *limit < objects.len()) else {
            return metadata;
        };
        metadata.remaining_item_count = Some(objects.len() - limit);
        objects.truncate(limit);
        if let Some(last) = objects.last() {
            let (namespace, name) = (&last["metadata"]["namespace"], &last["metadata"]["name"]);
            let namespace = namespace.as_str().unwrap_or_default();
            let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "namespace": namespace, "start": name});
            metadata.r#continue = Some(URL_SAFE_NO_PAD.encode(token.to_string()));
        }
        metadata
    }
}

fn commit(query: &Query) -> Result<Commit, ApiError> {
    match query.get("dryRun") {
        None | Some("") => Ok(Commit::Keep),
        Some("All") => Ok(Commit::DryRun),
        Some(other) => {
            Err(ApiError::bad_request(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")))
        }
    }
}

fn apply_patch(object: &mut Value, given: &Value, media_type: &str) -> Result<(), ApiError> {
    match media_type {
        "application/merge-patch+json" => patch::merge(object, given),
        "application/strategic-merge-patch+json" => patch::strategic_merge(object, given),
        "application/json-patch+json" => patch::json_patch(object, given)?,
        _ => {
            return Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml (got {media_type:?})"
            )));
        }
    }
    Ok(())
}

/// Optimistic concurrency: a resourceVersion in what is written must be the newest.
fn check_revision(resource: &Resource, before: &Value, written: &Value) -> Result<(), ApiError> {
    let name = before["metadata"]["name"].as_str().unwrap_or_default();
    let (current, given) = (&before["metadata"], &written["metadata"]);
    if given["resourceVersion"].as_str().is_some_and(|given| !given.is_empty() && current["resourceVersion"] != given) {
        return Err(ApiError::modified_meanwhile(resource, name));
    }
    if given["uid"].as_str().is_some_and(|given| !given.is_empty() && current["uid"] != given) {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            given["uid"], current["uid"]
        );
        return Err(ApiError::conflict(resource, name, &why));
    }
    Ok(())
}

fn check_preconditions(resource: &Resource, object: &Value, preconditions: &Value) -> Result<(), ApiError> {
    for field in ["uid", "resourceVersion"] {
        let (wanted, current) = (&preconditions[field], &object["metadata"][field]);
        if wanted.is_string() && wanted != current {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!("Precondition failed: {field} in precondition: {wanted}, in object meta: {current}");
            return Err(ApiError::conflict(resource, name, &why));
        }
    }
    Ok(())
}

/// An apply that changes nothing but the time of its managedFields entry leaves the object as it was.
fn keep_times_if_unchanged(before: &Value, after: Value) -> Value {
    let without_times = |object: &Value| {
        let mut object = object.clone();
        for entry in object["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
            entry["time"] = Value::Null;
        }
        object
    };
    if without_times(before) == without_times(&after) { before.clone() } else { after }
}

fn merged(object: &Value, key: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[key] = value;
    object
}

fn scale_of(deployment: &Value) -> Value {
    let metadata = &deployment["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": deployment["spec"]["replicas"]},
        "status": {"replicas": deployment["status"]["replicas"]},
    })
}
