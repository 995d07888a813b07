# Runs a command: $1 bytes of each output are kept, the rest is dropped; the exit code is the command's.
most=$1
shift
first() { head -c "$most"; cat >/dev/null; }
exec 4>&1
code=$(
    {
        {
            { "$@" </dev/null 5>&-; echo $? >&5; } 2>&1 >&3 3>&- 4>&- | first >&2 2>/dev/null 3>&- 4>&-
        } 3>&1 | first >&4 4>&-
    } 5>&1
)
exit "${code:-255}"
