//! The proof that connections survive: member 1 sends member 0 numbers over one TCP connection and
//! waits for each to come back. The connection is made once; a number that is lost, repeated or out of
//! order ends the job with an error, and so does a connection that breaks. Both print ticks.

/// The command. `$TICKS` numbers are exchanged, five a second at most.
pub const COMMAND: &str = r#"cat > /tmp/talk.pl <<'END'
use strict; use IO::Socket::INET; $| = 1;
my ($who, $count) = @ARGV; my $nonce;
sub keep { mkdir '/data'; open(my $f, '>', '/data/result') or die; print $f "$_[0] $nonce\n"; }
open(my $r, '<', '/dev/urandom') or die; read($r, my $bytes, 8); $nonce = unpack 'H*', $bytes;
if ($who == 0) {
  my $l = IO::Socket::INET->new(LocalPort => 7000, Listen => 1, ReuseAddr => 1) or die "listen: $!";
  my $c = $l->accept or die "accept: $!"; my $n = 0;
  while (my $line = <$c>) { $n++; die "got $line instead of $n" unless $line == $n; print $c "$n\n"; print "tick $n $nonce\n"; }
  keep($n); exit($n == $count ? 0 : 1);
}
my $c; until ($c = IO::Socket::INET->new(PeerAddr => 'member-0', PeerPort => 7000, Timeout => 2)) { sleep 1 }
for my $n (1 .. $count) {
  print $c "$n\n"; my $back = <$c>;
  die "lost at $n" unless defined $back && $back == $n;
  print "tick $n $nonce\n"; select undef, undef, undef, 0.2;
}
keep($count);
END
exec perl /tmp/talk.pl $(hostname | sed 's/.*-//') $TICKS"#;
