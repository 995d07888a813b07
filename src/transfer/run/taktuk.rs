//! TakTuk as a remote shell: it reaches a host by its own connector, and passes lines on to the command there.

use super::shell::quoted;

/// Each line becomes a command of TakTuk's, in which `^` may not stand; in JSON it may be written otherwise.
const SCRIPT: &str = r#"{ printf "broadcast exec ^ %s ^\n" "$2"; \
sed -u -e "s/\^/\\\\u005e/g" -e "s/.*/broadcast input line ^ & ^/"; echo broadcast input close; } \
| taktuk -s -c "$VMDEPLOY_CONNECTOR" -o status -o connector -o state -o output="\"\$line\\n\"" -o error="\"\$line\\n\"" -m "$1""#;

/// A command to which a host and a shell command are appended, with this one as the connector.
pub(super) fn through(connector: &str) -> String {
    format!("env VMDEPLOY_CONNECTOR={} sh -c {} taktuk", quoted(connector), quoted(&SCRIPT.replace("\\\n", "")))
}
