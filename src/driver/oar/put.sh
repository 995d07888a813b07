# Puts images to the other nodes by a TakTuk of its own, in a process that ends with this shell, however that ends: what
# the nodes want comes on descriptor 5, and comes to its end with this shell.
#
# Process tree: this subshell (the only writer of its TakTuk's standard input, descriptor 6), one that passes on what is
# wanted, and, while images are put, TakTuk and a ticker.
#
# Events come on descriptor 7, a line each: H| the hold has gone; W|IMAGE|NODE wants it; P| a tick has gone;
# T|STATE|RANK|HOST|PEER of TakTuk, whose states are 1 numbered (of rank 0: all that can be reached are), 2 TakTuk has ended,
# 3 a node cannot be reached, 5 one was lost, 14 a piece was not taken, 15 it was, 16 the piece could not be read.

# Whether the others know that nothing comes from this node.
told=
mkfifo "$pipes/wants" || exit @FAILED@
exec 5<> "$pipes/wants" 6< "$pipes/wants"
(
  own=$(mktemp -d) && mkfifo "$own/results" || exec cat <&5 > /dev/null
  exec 7<> "$own/results" 8> "$own/results"
  rm -rf "$own"
  (
    while read -r line; do echo "$line"; done
    echo 'H|'
  ) <&5 >&8 5<&- 7>&- 8>&- &
  exec 5<&-

  reached=' '
  count=0
  hosts=
  for node in $nodes; do
    if [ "$node" != "$first" ]; then
      hosts="$hosts -m $node"
      reached="$reached$node "
      count=$((count + 1))
    fi
  done

  taktuk=
  broken=
  # in ticks; moved: something has happened
  now=0
  moved=0
  # images that are put, and those that will be once more nodes want them, or enough time has gone
  images=
  pending=
  asks=
  gathered=0
  # pieces on their way, the first of which is the older one: their files, whose they are, the nodes that have not
  # answered yet, and whether any has taken it
  flying=0

  # Each has a standard input of its own: TakTuk leaves a process behind that reads it to its end.
  raise() {
    ready=
    moved=$now
    own=$(mktemp -d) && mkfifo "$own/puts" || {
      broken=1
      return
    }
    exec 6<> "$own/puts" 9< "$own/puts"
    rm -rf "$own"
    (
      unset TAKTUK_HOSTNAME
      exec taktuk -s -d @ARITY@ -t @PUT_CONNECT@ -c '@CONNECTOR@' -o 'state="T|$line|$rank|$host|$peer\n"' \
        -o output -o error -o status -o connector -o taktuk -o info -o message $hosts
    ) <&9 >&8 2> /dev/null 6>&- 7>&- 8>&- 9<&- &
    taktuk=$!
    exec 9<&-
    (while echo 'P|'; do sleep @TICK@; done) >&8 6>&- 7>&- 8>&- &
    ticks=$!
  }
  lower() {
    [ -n "$taktuk" ] || return 0
    kill -9 "$taktuk" "$ticks" 2> /dev/null
    wait "$taktuk" "$ticks" 2> /dev/null
    exec 6>&-
    taktuk=
    # who wrote the pieces sees that nobody wants them any more
    rm -f "$lease"/wanted-* "$lease"/out-*/*
    images=
    pending=
    asks=
    flying=0
  }
  asked() { # IMAGE NODE
    case $1 in '' | *[!0-9a-f]*) return ;; esac
    # one that is late for its beginning has it from others
    case "$images " in *" $1 "*) if [ -e "$lease/wanted-$1" ]; then return; fi ;; esac
    case "$asks " in *" $1/$2 "*) ;; *) asks="$asks $1/$2" ;; esac
    case "$pending " in *" $1 "*) ;; *)
      pending="$pending $1"
      gathered=$((now + @GATHER@))
      ;;
    esac
    [ -n "$taktuk" ] || raise
  }
  everybody_asks() {
    set -- $asks
    words=$#
    set -- $pending
    [ "$words" -ge $(($# * count)) ]
  }
  forget() { # IMAGE
    without "$images " "$1"
    images=${rest% }
    rm -f "$lease/wanted-$1"
  }
  begin() {
    later=
    for image in $pending; do
      # the agent is still at its last round of it
      if [ -e "$lease/out-$image" ]; then
        later="$later $image"
        continue
      fi
      forget "$image"
      images="$images $image"
      eval "next_$image=0"
      touch "$lease/wanted-$image"
      moved=$now
    done
    pending=$later
    asks=
  }
  # Puts the next piece that is there; false if there is none, or as many as may be are on their way.
  put() {
    [ "$flying" -lt 2 ] || return 1
    for image in $images; do
      eval "number=\$next_$image"
      piece=$lease/out-$image/$number
      [ -f "$piece" ] || continue
      echo "broadcast put [ $piece ] [ $lease/in-$image/$number ]" >&6
      eval "next_$image=$((number + 1))"
      if [ "$flying" = 0 ]; then
        piece1=$piece image1=$image owed1=$reached taken1= moved=$now
      else
        piece2=$piece image2=$image owed2=$reached taken2=
      fi
      flying=$((flying + 1))
      return 0
    done
    return 1
  }
  answered() { # TAKEN NODE
    moved=$now
    case $owed1 in
    *" $2 "*)
      without "$owed1" "$2"
      owed1=$rest
      taken1=$taken1$1
      ;;
    *)
      if [ "$flying" = 2 ]; then
        without "$owed2" "$2"
        owed2=$rest
        taken2=$taken2$1
      fi
      ;;
    esac
  }
  # Pieces that all have answered for make room for the next ones.
  settle() {
    while [ "$flying" -gt 0 ]; do
      case $owed1 in *[!\ ]*) return ;; esac
      rm -f "$piece1"
      [ -n "$taken1" ] || forget "$image1"
      flying=$((flying - 1))
      if [ "$flying" = 1 ]; then piece1=$piece2 image1=$image2 owed1=$owed2 taken1=$taken2; fi
    done
  }

  while IFS='|' read -r what code rank host peer <&7; do
    case $what in
    H) break ;;
    W) if [ -z "$broken" ]; then asked "$code" "$rank"; fi ;;
    P)
      now=$((now + 1))
      if [ $((now - moved)) -gt @PUT_LIMIT@ ] && [ "$flying" -gt 0 ]; then broken=1; fi
      if [ $((now - moved)) -gt @PUT_IDLE@ ]; then lower; fi
      ;;
    T)
      case $code:$rank in
      1:0) ready=1 ;;
      3:*)
        without "$reached" "$peer"
        reached=$rest
        ;;
      14:*) if [ "$flying" -gt 0 ]; then answered '' "$host"; fi ;;
      15:*) if [ "$flying" -gt 0 ]; then answered 1 "$host"; fi ;;
      5:* | 16:* | 2:0) broken=1 ;;
      esac
      ;;
    esac
    if [ -n "$broken" ]; then
      lower
      continue
    fi
    [ -n "$taktuk" ] || continue
    if [ -n "$ready" ] && [ -n "$pending" ]; then
      if [ "$now" -ge "$gathered" ] || everybody_asks; then begin; fi
    fi
    settle
    while put; do settle; done
  done
  lower
) 3>&- 4>&- 5<&6 6<&- &
exec 6<&-
