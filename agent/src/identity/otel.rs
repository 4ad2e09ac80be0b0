//! Names that a process carries in its OpenTelemetry environment variables.
//!
//! Source: OpenTelemetry specification, "Resource SDK" and "Environment Variable
//! Specification": OTEL_SERVICE_NAME beats `service.name` of OTEL_RESOURCE_ATTRIBUTES,
//! which is a comma-separated list of key=value with percent-encoded values.

use percent_encoding::percent_decode;

use super::label_value;

/// What OpenTelemetry variables say about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtelIdentity {
    /// OTEL_SERVICE_NAME, else the resource attribute `service.name`.
    pub service_name: Option<String>,
    /// The resource attribute `service.version`.
    pub service_version: Option<String>,
}

/// Reads the content of `/proc/PID/environ`: assignments, each ended by a zero byte. As
/// for getenv(3), the first assignment of a name counts.
pub fn parse_environ(environ: &[u8]) -> OtelIdentity {
    let variable = |name: &[u8]| {
        environ.split(|&byte| byte == 0).find_map(|assignment| {
            assignment.strip_prefix(name).and_then(|rest| rest.strip_prefix(b"="))
        })
    };
    let attributes = variable(b"OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    OtelIdentity {
        service_name: variable(b"OTEL_SERVICE_NAME")
            .and_then(|name| label_value(&String::from_utf8_lossy(name)))
            .or_else(|| attribute(attributes, "service.name")),
        service_version: attribute(attributes, "service.version"),
    }
}

fn attribute(attributes: &[u8], wanted: &str) -> Option<String> {
    attributes.split(|&byte| byte == b',').find_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        let decode = |part| percent_decode(part).decode_utf8_lossy();
        let (key, value) = (decode(&pair[..equals]), decode(&pair[equals + 1..]));
        (key.trim() == wanted).then(|| label_value(&value))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(environ: &str, service: Option<&str>, version: Option<&str>) {
        let identity = parse_environ(environ.as_bytes());
        assert_eq!(
            (identity.service_name.as_deref(), identity.service_version.as_deref()),
            (service, version),
            "{environ:?}"
        );
    }

    #[test]
    fn the_service_name_variable_beats_the_attribute() {
        check("OTEL_SERVICE_NAME=a\0OTEL_RESOURCE_ATTRIBUTES=service.name=b\0", Some("a"), None);
        check("OTEL_SERVICE_NAME=\0OTEL_RESOURCE_ATTRIBUTES=service.name=b\0", Some("b"), None);
    }

    #[test]
    fn attributes_are_separated_trimmed_and_decoded() {
        check(
            "OTEL_RESOURCE_ATTRIBUTES= service.name = my%20shop , k=v,service.version=1%2C2=3",
            Some("my shop"),
            Some("1,2=3"),
        );
        check("OTEL_RESOURCE_ATTRIBUTES=service.name=%C3%BC%zz%4", Some("ü%zz%4"), None);
    }

    #[test]
    fn other_variables_and_malformed_lists_say_nothing() {
        check("", None, None);
        check("XOTEL_SERVICE_NAME=a\0OTEL_SERVICE_NAMES=b\0OTEL_SERVICE_NAME", None, None);
        check("OTEL_RESOURCE_ATTRIBUTES=,,=,service.name,service.version=\0", None, None);
        check("OTEL_RESOURCE_ATTRIBUTES=xservice.name=a,service.name.b=c\0", None, None);
    }

    #[test]
    fn the_first_assignment_counts() {
        check("OTEL_SERVICE_NAME=a\0OTEL_SERVICE_NAME=b\0", Some("a"), None);
    }

    #[test]
    fn an_environment_that_is_cut_off_or_binary_is_read_as_far_as_it_goes() {
        check("\0\0OTEL_SERVICE_NAME=cut", Some("cut"), None);
        assert_eq!(
            parse_environ(b"\xff\xfe\0OTEL_SERVICE_NAME=a\xff\0").service_name.as_deref(),
            Some("a\u{fffd}")
        );
    }
}
