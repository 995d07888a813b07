#!/bin/sh
# The hold of a vmdeploy job: keeps the nodes of this OAR job and tells the agent on each of them,
# by a lock and a beat, that they are still ours. It ends by itself when nobody needs it.
#
# Process tree: this shell (the only writer of TakTuk's standard input, descriptor 3, which no child
# inherits), TakTuk, and a ticker. Whatever ends this shell ends all the others.
set -u
umask 077
job=$OAR_JOB_ID
lease=@LEASE@$job
# The API's file is removed by the last of the jobs that run it: those of an array share one.
case $0 in */oarapi.subscript.*)
  touch "$0.$job"
  set -- "$0".*
  if test $# -ge @HOLDS@; then rm -f "$0" "$0".*; fi
  # Some jobs of an array may never begin: what is left of one of which others began long ago goes as well.
  find "${0%/*}" -maxdepth 1 -type f -name 'oarapi.subscript.*.*' -mmin +@STALE@ 2>/dev/null | while read -r marker; do
    file=${marker%.*}
    if grep -q '^# The hold of a vmdeploy job:' "$file"; then rm -f "$file" "$file".*; fi
  done ;;
esac

first=$(head -n 1 "$OAR_NODEFILE")

# On each node. One line for TakTuk, run by the node's sh; no comment and no bracket may stand in it.
# Each line read is a beat or the word "notice" or "none"; end of file or silence means that the hold is gone.
# The lock's file is made here and must not exist: a lease that was lost is never taken up again.
holder='
locked=; noticed=; waited=0;
while line=$(timeout @SILENCE@ sh -c "read -r l && echo \$l" 9>&-); do
  case $line in notice) noticed=1 ;; none) none=1 ;; *) beat=$line ;; esac;
  if test $((beat % @ROUND@)) = 0; then
    there=; if test -n "$locked" && test -f $d/agent; then read -r there < $d/agent; fi;
    if test -n "$there" && test "$there" = "$nonce" && flock -n -s 8 8< $d/agent 9>&-; then echo alone; else echo here; fi;
  fi;
  if test -z "$locked"; then
    if test -d $d && test ! -L $d && test -O $d && test -f $d/nonce; then
      if test -e $d/lock || test -L $d/lock; then exit @LOST_HOLDER@; fi;
      @MARK@
      set -C; exec 9> $d/lock; set +C;
      flock -w 10 9 || exit @LOST_HOLDER@;
      locked=1;
    else
      waited=$((waited + 1));
      if test $waited -gt @WAIT_BEATS@; then exit @NO_AGENT@; fi;
      continue;
    fi;
  fi;
  read -r nonce < $d/nonce;
  printf "%s %s %010d\n" $job "$nonce" "$beat" 1<> $d/lock || exit @LOST_HOLDER@;
  if test -n "$noticed" && test ! -e $d/notice; then echo $job > $d/notice; fi;
  @WANTS@
  if test -e $d/release; then
    read -r word < $d/release;
    case $word in done) exit @DONE@;; saved) exit @SAVED@;; *) exit @LOST_HOLDER@;; esac;
  fi;
done;
exit @LOST_HOLDER@;
'
one_line=$(printf '%s' "d=$lease; job=$job; beat=0; none=; $holder" | tr '\n' ' ')

nodes=$(sort -u "$OAR_NODEFILE")
hosts=
for node in $nodes; do
  case $node in *[!A-Za-z0-9._-]*) echo "hold: strange node name" >&2; exit @FAILED@ ;; esac
  hosts="$hosts -m $node"
done

without() { # LIST NODE: sets $rest
  case $1 in
  *" $2 "*) rest="${1%% $2 *} ${1#* $2 }" ;;
  *) rest=$1 ;;
  esac
}

pipes=$(mktemp -d) || exit @FAILED@
mkfifo "$pipes/orders" "$pipes/events" || exit @FAILED@
leave() {
  trap '' USR2 TERM INT HUP EXIT
  rm -rf "$pipes"
  exec 3>&-
  kill "$ticker" 2>/dev/null
  echo "hold: $2" >&2
  exit "$1"
}
ticker=
notice=
# OAR repeats the signal at every pass of its scheduler
on_notice() {
  trap '' USR2
  notice=1
  trap on_notice USR2
}
trap on_notice USR2
trap 'leave @FAILED@ "told to end"' TERM INT HUP
trap 'rm -rf "$pipes"' EXIT

# By a key that the operator has as well the two know each other. Nodes get to know that of this slot alone, or less.
key=
if test -n '@KEY@'; then
  case '@KEY@' in /*) file='@KEY@' ;; *) file=$HOME/@KEY@ ;; esac
  read -r key < "$file"
  case $key in *[!A-Za-z0-9]*) key= ;; esac
  if [ -n "$(find "$file" -perm /077 2> /dev/null)" ]; then leave @NO_LAUNCH_KEY@ "others may read $file"; fi
  [ ${#key} -ge @LEAST_KEY@ ] || leave @NO_LAUNCH_KEY@ "there is no launch key in $file"
  key=$(printf '%s %s' "$key" "$job" | sha256sum)
  key=${key%% *}
fi

connector='@CONNECTOR@'
tree=
# The beat from which on a node that is silent is lost, and the last one at which some node had an agent.
heard=0
attended=0
# Nodes that are deployed first answer late, and before that as another system: the connector knocks until the agent has
# come. They have no way to each other: all hang on this shell's TakTuk, which knocks at all of them at once. A connector
# that knocks is ended by nothing but itself when this shell has gone. Where nodes are to join the cluster with a token of
# their own, a system that knows what it is for and has none gets it.
if test -n '@DEPLOYED@'; then
  heard=
  tree='-d -1 -w 1000'
  ask="test -f $lease/nonce"
  if test -n '@TOKEN@'; then
    ask="$ask || { test -d @TOKEN_DIRECTORY@ && test ! -s @TOKEN@ && exit @NO_TOKEN@; exit 1; }"
  fi
  give='umask 077 && rm -f @TOKEN@.new && cat > @TOKEN@.new && mv @TOKEN@.new @TOKEN@'
  export SLOT_KEY="$key" LEASE="${lease##*/}" ASK="$ask" GIVE="$give" KNOCK='
    k=0
    until @CONNECTOR@ "$0" "$ASK" < /dev/null > /dev/null 2>&1; do
      if test $? = @NO_TOKEN@; then
        id=$(printf "%s %s" "$LEASE" "$0" | sha256sum | cut -c 1-6)
        secret=$(printf "%s %s" "$SLOT_KEY" "$0" | sha256sum | cut -c 1-16)
        echo "$id.$secret" | @CONNECTOR@ "$0" "$GIVE" > /dev/null 2>&1
      fi
      k=$((k + 1))
      test $k -lt @KNOCKS@ && kill -0 '$$' || exit 1
      sleep @KNOCK@
    done
    exec @CONNECTOR@ "$0" "$1"'
  connector='sh -c "$KNOCK"'
fi

exec 4<> "$pipes/events"
(
  unset TAKTUK_HOSTNAME
  taktuk -s $tree -t @CONNECT@ -c "$connector" \
    -o 'output="O|$host|$line\n"' -o 'status="S|$host|$line\n"' -o 'state="T|$peer|$line\n"' \
    -o @ERROR@ -o connector -o taktuk -o info -o message $hosts
  echo 'E||'
) > "$pipes/events" < "$pipes/orders" 3>&- 4>&- &
exec 3> "$pipes/orders"
(while echo 'B||'; do sleep @BEAT@; done) > "$pipes/events" 3>&- 4>&- &
ticker=$!
@PUT_IMAGES@
# Where there is no kubelet, a launcher starts the agents. It is told the key: nothing else reads its input before the
# holders do.
if test -n '@LAUNCHER@'; then
  echo 'broadcast exec [ @LAUNCHER@ > /dev/null; exit @NO_LAUNCHER@ ]' >&3
  echo "broadcast input line [ $key ]" >&3
fi
echo "broadcast exec [ $one_line ]" >&3

# left: nodes whose holder is at work; silent: those of them not heard of in this round
left=" $(echo $nodes) "
silent=$left
beat=0
lost=
saved=
# of launchers: what one of them has said last
words=
gone() { # NODE
  without "$left" "$1"
  left=$rest
  without "$silent" "$1"
  silent=$rest
}
while :; do
  read -r line <&4 || line=
  if [ -n "$notice" ]; then
    notice=
    echo 'broadcast input line [ notice ]' >&3
  fi
  what=${line%%|*}
  line=${line#*|}
  node=${line%%|*}
  code=${line#*|}
  case $what in
  B)
    # everybody has opened the pipes by now
    if [ "$beat" = 0 ]; then rm -rf "$pipes"; fi
    beat=$((beat + 1))
    echo "broadcast input line [ $beat ]" >&3
    @TELL@
    if [ $((beat % @ROUND@)) = 0 ]; then
      if [ -n "$heard" ] && [ $((beat - heard)) -gt @ROUND@ ]; then
        for node in $silent; do
          echo "hold: $node is silent" >&2
          lost=@LOST_HOLDER@
          gone "$node"
        done
      fi
      silent=$left
      # those that OAR could not end, for it did not reach the node, nobody else would end either
      if [ -n "$heard" ] && [ $((beat - attended)) -gt @FORGOTTEN@ ]; then leave @LOST_HOLDER@ "all agents have gone"; fi
    fi
    ;;
  O)
    without "$silent" "$node"
    silent=$rest
    if [ "$code" != alone ] || [ -z "$heard" ]; then attended=$beat; fi
    @ASK@
    # all are reached by now
    heard=${heard:-$beat}
    ;;
  L) words="$node: $code" ;;
  T)
    # a node that cannot be reached at the start: the others cannot work without it
    if [ "$code" = 3 ] && [ -n '@DEPLOYED@' ]; then leave @NO_AGENT@ "no agent came to $node"; fi
    if [ "$code" = 3 ]; then leave @LOST_HOLDER@ "cannot reach $node"; fi
    ;;
  S)
    case $((code / 256)) in
    @DONE@) ;;
    @SAVED@) saved=1 ;;
    @NO_AGENT@) leave @NO_AGENT@ "no agent came to $node" ;;
    @NO_LAUNCHER@)
      # nobody else would know why: OAR keeps no output of this shell
      echo "$(date) OAR job $job: the launcher on $node has ended; it said last: ${words:-nothing}" >> "$HOME/@LAUNCHER_LOG@"
      echo "hold: the launcher on $node has ended" >&2
      lost=@NO_LAUNCHER@
      ;;
    *)
      echo "hold: the holder on $node ended with $code" >&2
      lost=@LOST_HOLDER@
      ;;
    esac
    gone "$node"
    ;;
  E) leave @LOST_HOLDER@ "taktuk ended" ;;
  esac
  case $left in
  *[!\ ]*) ;;
  *)
    [ -z "$lost" ] || leave "$lost" "a node was lost"
    [ -z "$saved" ] || leave @SAVED@ "everything is saved"
    leave @DONE@ "done"
    ;;
  esac
done
