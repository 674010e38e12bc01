# Silence: what happens to a server that sends no heartbeats, and how it comes back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TTL = 0.5 * time_scale();
my $ttl = 1000 * $TTL . 'ms';
my $third = $TTL / 3;

# Each registry has a service of its own name, an API at /NAME/ and requests at /to/NAME.
my %REGISTRIES = (
    late     => "heartbeat_ttl $ttl; cleanup_interval 1h;",
    disables => "heartbeat_ttl $ttl; cleanup_interval 100ms; on_expire disable;",
    removes  => "heartbeat_ttl $ttl; cleanup_interval 100ms; on_expire remove;",
    forgets  => "heartbeat_ttl $ttl; cleanup_interval 100ms; remove_after " . 2000 * $TTL . 'ms;',
    never    => 'heartbeat_ttl 0; cleanup_interval 50ms;',
);
require "$FindBin::Bin/life.pl";

our $node = RegistryTest->nginx(
    workers => 2,
    http => join('', map { "registry $_ 256k { $REGISTRIES{$_} } upstream $_ { registry $_; }\n" } sort keys %REGISTRIES),
    server => join('', map {
        "location /$_/ { registry_api $_; } location /to/$_ { proxy_pass http://$_; }\n"
    } sort keys %REGISTRIES),
);
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);

subtest 'an expired server is out of rotation before any timer runs' => sub {
    call('late', add => $_) for $a, $b;
    is(answers('late'), 'a b', 'both servers take requests');
    for (1 .. 4) {
        sleep $third;
        call('late', refresh => $b);
    }
    is(answers('late'), 'b', 'the silent one takes none, from the first request on');

    my $server = server('late', $a);
    is($server->{state}, 'expired', 'its state');
    ok(!$server->{is_active}, 'it is not active');
    ok($server->{enabled}, 'it is enabled still: that is the timer\'s business');
    is($server->{disabled_at}, undef, 'and was never disabled');
    ok($server->{time_since_heartbeat} > $TTL, 'its silence is longer than the TTL');
    is_deeply($node->get('/late/health')->{json}{data},
        { total_servers => 2, enabled_servers => 2, active_servers => 1, expired_servers => 1 },
        'health counts it');
};

for my $heartbeat (qw(refresh add)) {
    subtest "an expired server comes back with its next heartbeat, by $heartbeat" => sub {
        sleep $TTL + $third;
        call('late', refresh => $b);
        is(server('late', $a)->{state}, 'expired', 'it has expired');
        is(call('late', $heartbeat => $a)->{status}, 200, 'a heartbeat is accepted');
        is(answers('late'), 'a b', 'and the server takes requests at once');
        my $server = server('late', $a);
        is("$server->{state} $server->{is_active}", 'up 1', 'its state');
        ok($server->{time_since_heartbeat} < $TTL, 'it was just heard of');
    };
}

subtest 'when all are silent, requests are answered 502 and the log says why' => sub {
    sleep $TTL + $third;
    my $from = $node->log_size;
    is(answers('late', 1), '502', 'nobody is there to answer');
    like($node->wait_log(qr/no eligible server/, 5, $from), qr/registry "late".*namespace "late": 2 expired/, 'two expired');
    is($node->get('/late/health')->{json}{status}, 'unhealthy', 'health says so too');
    call('late', refresh => $a);
    is(answers('late'), 'a', 'the first to be heard of takes the requests');
};

subtest 'on_expire disable: the timer disables' => sub {
    call('disables', add => $a, weight => 3);
    my $before = server('disables', $a);
    ok($before->{enabled} && !defined $before->{disabled_reason}, 'a server that is heard of is enabled');
    ok(wait_until(sub { !server('disables', $a)->{enabled} }), 'a silent one is disabled');
    my $server = server('disables', $a);
    is($server->{disabled_reason}, 'heartbeat_timeout', 'with the reason');
    ok($server->{disabled_at} >= $server->{last_heartbeat} + $TTL - 0.01
            && $server->{disabled_at} <= time + 0.01, 'and the time at which it was')
        or diag("heartbeat $server->{last_heartbeat}, disabled $server->{disabled_at}");
    is($server->{state}, 'expired', 'its state');
    is(answers('disables', 1), '502', 'it takes no requests');

    sleep 2 * $TTL;
    ok(server('disables', $a), 'without remove_after it is never forgotten');

    is(call('disables', refresh => $a)->{status}, 200, 'its next heartbeat');
    $server = server('disables', $a);
    ok($server->{enabled} && $server->{is_active}, 'enables it');
    is($server->{disabled_reason}, undef, 'the reason is gone');
    is($server->{disabled_at}, undef, 'and the time');
    is("$server->{weight} $server->{created_at}", "3 $before->{created_at}", 'it is the same server as before');
    is(answers('disables', 2), 'a', 'which takes requests');

    ok(wait_until(sub { !server('disables', $a)->{enabled} }), 'silent once more it is disabled once more');
    my $reply = call('disables', add => $a);
    ok($reply->{json}{data}{enabled}, 'and enabled by an add as well');
    is($reply->{json}{data}{weight}, 3, 'with the weight that it had');
};

subtest 'on_expire remove: the timer removes' => sub {
    call('removes', add => $a, weight => 3);
    sleep $third;
    ok(server('removes', $a), 'not before its time');
    call('removes', refresh => $a);
    my $heard = time;
    ok(wait_until(sub { !server('removes', $a) }), 'a silent server is removed');
    ok(time - $heard >= $TTL, 'no earlier than the TTL');
    is(call('removes', refresh => $a)->{status}, 404, 'a refresh does not know it');
    is(answers('removes', 1), '502', 'and it takes no requests');
    is(call('removes', add => $a)->{json}{data}{weight}, 1, 'an add registers it anew');
    is(answers('removes', 1), 'a', 'and it takes requests again');
};

subtest 'remove_after forgets' => sub {
    call('forgets', add => $_) for $a, $b;
    call('forgets', toggle => $b, action => 'disable');
    my $heard = time;
    ok(wait_until(sub { !server('forgets', $a)->{enabled} }), 'a silent server is disabled first');
    ok(wait_until(sub { !server('forgets', $a) }, 10 * time_scale()), 'then forgotten');
    ok(time - $heard >= 2 * $TTL, 'no earlier than after remove_after');
    is(call('forgets', refresh => $a)->{status}, 404, 'a refresh does not know it');
    ok(server('forgets', $b), 'one that was disabled by hand is not forgotten');
};

subtest 'heartbeat_ttl 0: silence means nothing' => sub {
    call('never', add => $a);
    sleep 2 * $third;
    my $server = server('never', $a);
    is("$server->{state} $server->{is_active} $server->{enabled}", 'up 1 1', 'a silent server is up');
    is(answers('never', 2), 'a', 'and takes requests');
    is($node->post('/never/cleanup')->{json}{data}{expired_count}, 0, 'a cleanup finds nothing expired');
    is(call('never', refresh => $a)->{status}, 200, 'a heartbeat is welcome all the same');
};

$node->log_is_clean;
done_testing;
