//! `GET /api/v1/openapi.json`: what the admin API is, for programs (`OpenAPI` 3.1).

/// The document, as it stands in `docs/`.
pub(super) const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::Method;
    use serde_json::Value;

    use super::super::api::Resource;
    use super::*;

    /// What is there: path, method, parameters, and whether it takes a body. HEAD goes with GET.
    fn of_code() -> BTreeSet<(String, String, Vec<String>, bool)> {
        let mut found = BTreeSet::new();
        for resource in Resource::ALL {
            for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
                let Some(parameters) = resource.parameters(&method) else { continue };
                let mut parameters: Vec<String> = parameters.iter().map(|name| (*name).to_owned()).collect();
                parameters.sort();
                let path = format!("/api/v1/{}", resource.name());
                assert_eq!(Resource::parse(&path), Some(resource));
                assert_eq!(resource.parameters(&Method::HEAD).is_some(), resource.parameters(&Method::GET).is_some());
                let takes_body = resource.takes_body(&method) || super::super::carry::takes_body(resource, &method);
                found.insert((path, method.as_str().to_ascii_lowercase(), parameters, takes_body));
            }
        }
        found
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let none = Vec::new();
                let listed = operation["parameters"].as_array().unwrap_or(&none);
                let mut parameters = Vec::new();
                for parameter in listed {
                    assert_eq!(parameter["in"], "query", "{path}");
                    assert!(parameter["description"].is_string(), "{path}: {parameter}");
                    parameters.push(parameter["name"].as_str().unwrap().to_owned());
                }
                parameters.sort();
                let body = &operation["requestBody"]["content"];
                let takes_body = body.is_object();
                let resource = Resource::parse(path).unwrap();
                if resource.takes_body(&method.to_ascii_uppercase().parse().unwrap()) {
                    assert!(body["application/json"]["schema"]["$ref"].is_string(), "{method} {path}: {body}");
                    for status in ["408", "413", "415"] {
                        assert!(operation["responses"][status].is_object(), "{method} {path}: {status}");
                    }
                }
                described.insert((path.clone(), method.clone(), parameters, takes_body));
                // Reads are open to this machine, changes never.
                let is_open = operation["security"].as_array().unwrap().iter().any(|way| way == &serde_json::json!({}));
                assert_eq!(is_open, method == "get", "{method} {path}");
            }
        }
        assert_eq!(described, of_code());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let mut next = vec![&document];
        let mut references = 0;
        while let Some(value) = next.pop() {
            match value {
                Value::Object(fields) => {
                    if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                        references += 1;
                    }
                    next.extend(fields.values());
                }
                Value::Array(items) => next.extend(items),
                _ => {}
            }
        }
        assert!(references > 50, "{references}");
    }
}
