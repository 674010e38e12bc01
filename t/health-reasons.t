# Why a check fails: each reason in status and in the log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our $node;
$node = checked({
    status => [ 'fails=1', 'passes=1', 'timeout=' . ms(0.4) ],
    body   => [ 'fails=1', 'passes=1', 'timeout=' . ms(0.4), 'body~never' ],
    tcp    => [ 'type=tcp', 'fails=1', 'passes=1', 'timeout=' . ms(0.4) ],
    only   => [ 'fails=1', 'passes=1', 'status=200' ],
});

# A byte well within the timeout, again and again, is not soon enough.
$RegistryTest::BackendProbed::SCRIPTS{steady} = [ 'read', [ drip => "HTTP/1.1 200 OK\r\nX: ", 0.05 ] ];

# By the script of the backend: the reason, where only the status counts and where the body does.
my $BODY = 'body does not match';
my %reasons = (
    'status 503' => [ 'status 503', 'status 503' ],
    ok       => [ undef, $BODY ],
    silent   => [ 'timeout', 'timeout' ],
    steady   => [ 'timeout', 'timeout' ],
    slams    => [ 'connection closed', 'connection closed' ],
    resets   => [ 'connection closed', 'connection closed' ],
    leaves   => [ 'connection closed', 'connection closed' ],
    breaks   => [ 'connection closed', 'connection closed' ],
    garbage  => [ 'malformed response', 'malformed response' ],
    noise    => [ 'malformed response', 'malformed response' ],
    slow     => [ 'timeout', 'timeout' ],
    dribbles => [ undef, 'timeout' ],
    endless  => [ undef, $BODY ],
    chunks   => [ undef, $BODY ],
    tiny     => [ undef, $BODY ],
    extended => [ undef, 'malformed response' ],
    headers  => [ 'response head too large', 'response head too large' ],
    line     => [ 'response head too large', 'response head too large' ],
    interim  => [ 'response head too large', 'response head too large' ],
    blank    => [ 'malformed response', 'malformed response' ],
    half     => [ 'timeout', 'timeout' ],
    short    => [ undef, 'connection closed' ],
    chunk    => [ undef, 'malformed response' ],
    no_size  => [ undef, 'malformed response' ],
    cut      => [ undef, 'connection closed' ],
    huge     => [ undef, 'malformed response' ],
    most     => [ 'malformed response', 'malformed response' ],
    negative => [ 'malformed response', 'malformed response' ],
    nul      => [ 'malformed response', 'malformed response' ],
    tangle   => [ undef, $BODY ],
    redirect => [ undef, $BODY ],
);
my @scripts = sort keys %reasons;
my $probed = RegistryTest->probed(count => scalar @scripts);
$probed->behave($scripts[$_], $_) for 0 .. $#scripts;

for my $kind ('status', 'body') {
    subtest "what counts is the $kind" => sub {
        call($kind, add => $probed->address($_)) for 0 .. $#scripts;
        for my $i (0 .. $#scripts) {
            my ($how, $addr) = ($scripts[$i], $probed->address($i));
            my $expected = $reasons{$how}[ $kind eq 'body' ? 1 : 0 ];
            my $health = after_checks($kind, $addr, 2, $how);
            my $error = $health->{last_error};
            is($error, $expected, "\"$how\": " . (defined $expected ? $expected : 'passes'));
            if (defined $error) {
                is(state($kind, $addr), 'unhealthy', 'it is out');
                is(join('; ', said($kind, $addr)), "unhealthy: $error, 1", 'and the log says why, once');
            }
            else {
                is(state($kind, $addr), 'up', 'it is in');
                is(join('; ', said($kind, $addr)), '', 'the log has no line');
            }
        }
        call($kind, remove => $probed->address($_)) for 0 .. $#scripts;
    };
}

subtest 'one status alone' => sub {
    my $redirect = RegistryTest->probed(how => 'redirect');
    call('only', add => $redirect);
    is(after_checks('only', $redirect, 2)->{last_error}, 'status 301', 'a redirect is not followed');
    is($redirect->most_at_once, 1, 'one connection at a time');
    is(join(' ', map { $_->{line} } ($redirect->log)[0, 1]), 'GET / HTTP/1.1 GET / HTTP/1.1', 'and the same path each time');
    call('only', remove => $redirect);
};

# Where nothing is listening, and where there is no way.
for my $registry (qw(status tcp)) {
    subtest "no connection, $registry" => sub {
        my $gone = RegistryTest->backend(start => 0);
        for my $case ([ $gone->address, 'connect refused' ], [ '127.255.255.255:9', 'unreachable' ]) {
            my ($addr, $reason) = @$case;
            my $r = call($registry, add => $addr);
            is($r->{status}, 200, $addr) or diag($r->{body});
            becomes($registry, $addr, 'unhealthy', 'is out');
            is(health($registry, $addr)->{last_error}, $reason, $reason);
            is(join('; ', said($registry, $addr)), "unhealthy: $reason, 1", 'the log says so');
            call($registry, remove => $addr);
        }
        # Its backlog is full: nobody answers the first packet.
        my $full = RegistryTest->backend(backlog => 1);
        $full->pause;
        my @clients = map { my $c = RegistryTest->client($full->address, timeout => 0.2); eval { $c->open }; $c } 1 .. 4;
        call($registry, add => $full);
        becomes($registry, $full, 'unhealthy', 'a server that takes no connection');
        is(health($registry, $full)->{last_error}, 'timeout', 'is waited for');
        $_->close for @clients;
        $full->resume;
        becomes($registry, $full, 'up', 'and comes back');
        call($registry, remove => $full);
    };
}

$node->log_is_clean;
done_testing;
