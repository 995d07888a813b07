//! TakTuk as a remote shell: it reaches a host by its own connector, and passes lines on to the command there.
//!
//! One for each host, and no tree of all hosts: in a tree hosts connect to each other, so each would need a key of the
//! next, whoever is below one that is lost would be lost with it, and all reports would pass through one process. It
//! would save CPU here, of which ssh takes 0.07 s a host and a tree of arity 6 a fifth of that, but no time: on one
//! machine of two cores 32 hosts ran a command after 7.0 to 8.7 s by ssh, 7.8 to 8.7 s by such a tree.

use super::shell::quoted;

/// Each line becomes a command of TakTuk's, in which `^` may not stand; in JSON it may be written otherwise. Of its own
/// messages it passes on why a connection failed, and that it did (3), as a report: it would wait for more commands.
const SCRIPT: &str = r#"{ printf "broadcast exec ^ %s ^\n" "$2"; \
sed -u -e "s/\^/\\\\u005e/g" -e "s/.*/broadcast input line ^ & ^/"; echo broadcast input close; } \
| taktuk -s -t 30 -c "$VMDEPLOY_CONNECTOR" -o status -R "connector=>&=2" -o 'connector="$line\n"' \
-o 'state=$line == 3 ? qq({"unfit":{"reason":"TakTuk does not reach it"}}\n) : ""' \
-o 'output="$line\n"' -o 'error="$line\n"' -m "$1""#;

/// A command to which a host and a shell command are appended, with this one as the connector.
pub(super) fn through(connector: &str) -> String {
    format!("env VMDEPLOY_CONNECTOR={} sh -c {} taktuk", quoted(connector), quoted(&SCRIPT.replace("\\\n", "")))
}
