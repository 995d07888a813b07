# Starts the job's command, once. Arguments: directory, user, working directory, command...
# The directory is the lock: a second start finds it and does nothing.
d=$1 user=$2 wd=$3
shift 3
umask 077
mkdir -p "${d%/*}" || exit 1
if ! mkdir "$d" 2>/dev/null; then
  if [ ! -e "$d/rc" ] && [ "$(cat "$d/boot" 2>/dev/null)" != "$(cat /proc/sys/kernel/random/boot_id)" ]; then
    echo lost
  else
    echo already
  fi
  exit 0
fi
cat /proc/sys/kernel/random/boot_id >"$d/boot"
port=
for p in /sys/class/virtio-ports/*; do
  if [ "$(cat "$p/name" 2>/dev/null)" = vmdeploy.output ]; then port=/dev/${p##*/}; fi
done
if [ ! -c "$port" ]; then
  rm -rf "$d"
  echo "the port for the output is missing"
  exit 1
fi
if [ -n "$user" ]; then
  if ! id -u "$user" >/dev/null 2>&1; then
    rm -rf "$d"
    echo "there is no user $user"
    exit 1
  fi
  home=$(getent passwd "$user" 2>/dev/null | cut -d: -f6)
  set -- env HOME="${home:-/}" USER="$user" setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups -- "$@"
fi
# outside the guest agent's own group: its restart must not end the job
scope=
if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
  scope="systemd-run --quiet --scope --unit=vmdeploy-job --"
fi
setsid $scope sh -c '
  d=$1 wd=$2
  shift 2
  echo $$ >"$d/pid"
  (umask 022; cd "$wd" && exec "$@")
  echo $? >"$d/rc.new"
  sync "$d/rc.new" 2>/dev/null
  mv "$d/rc.new" "$d/rc"
  sync "$d" 2>/dev/null' vmdeploy-job "$d" "$wd" "$@" >"$port" 2>&1 </dev/null &
echo started
