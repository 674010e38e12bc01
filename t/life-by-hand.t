# What people do to servers: disable, enable, drain, weight; and what an add of a known
# server changes. All of it holds against heartbeats and the timer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TTL = 0.4 * time_scale();
my $ttl = 1000 * $TTL . 'ms';
my %REGISTRIES = (
    main    => 'heartbeat_ttl 1h; cleanup_interval 50ms;',
    silent  => "heartbeat_ttl $ttl; cleanup_interval 50ms; on_expire disable; remove_after $ttl;",
    strict  => "heartbeat_ttl $ttl; cleanup_interval 50ms; on_expire remove; on_duplicate reject;",
);
require "$FindBin::Bin/life.pl";

our $node = RegistryTest->nginx(
    workers => 2,
    http => join('', map { "registry $_ 256k { $REGISTRIES{$_} } upstream $_ { registry $_; }\n" } sort keys %REGISTRIES),
    server => join('', map {
        "location /$_/ { registry_api $_; } location /to/$_ { proxy_pass http://$_/; }\n"
    } sort keys %REGISTRIES),
);
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);

# A request that is on its server for so many seconds; read its answer with ->response.
sub slow {
    my ($registry, $seconds) = @_;
    my $client = $node->client;
    $client->send("GET /to/$registry?delay=$seconds HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    return $client;
}

subtest 'a server disabled by hand takes no requests until it is enabled by hand' => sub {
    call('main', add => $_) for $a, $b;
    my $reply = call('main', toggle => $a, action => 'disable');
    is("$reply->{status} $reply->{json}{data}{addr} $reply->{json}{data}{enabled}",
        '200 ' . $a->address . ' 0', 'disable answers with the new state');
    is(answers('main'), 'b', 'from then on the other server takes all');
    my $server = server('main', $a);
    is("$server->{state} $server->{enabled} $server->{disabled_reason}", 'down 0 manual', 'status says why');
    my $since = $server->{disabled_at};
    ok(abs(time - $since) < 5, 'and since when');

    call('main', toggle => $a, action => 'disable');
    is(server('main', $a)->{disabled_at}, $since, 'to disable it again changes nothing');
    is(call('main', refresh => $a)->{status}, 200, 'a refresh is accepted');
    is(call('main', add => $a)->{json}{data}{enabled}, JSON::PP::false(), 'so is an add, which says that it is disabled');
    is(answers('main'), 'b', 'and neither ends it');

    ok(call('main', toggle => $a, action => 'enable')->{json}{data}{enabled}, 'enable does');
    is(answers('main'), 'a b', 'and it takes requests again');
    $server = server('main', $a);
    is($server->{state}, 'up', 'status knows');
    ok(!defined $server->{disabled_reason} && !defined $server->{disabled_at}, 'and nothing is left of it');
    call('main', remove => $_) for $a, $b;
};

for my $case ([ silent => 'on_expire disable and remove_after' ], [ strict => 'on_expire remove' ]) {
    my ($registry, $what) = @$case;
    subtest "disabled by hand, a silent server outlives $what" => sub {
        call($registry, add => $a);
        call($registry, toggle => $a, action => 'disable');
        my $since = server($registry, $a)->{disabled_at};
        sleep 3 * $TTL;
        my $server = server($registry, $a);
        is("$server->{enabled} $server->{disabled_reason} $server->{disabled_at}", "0 manual $since",
            'it is there, disabled by hand and not by the timer') or return;
        is($node->post("/$registry/cleanup")->{json}{data}{removed_count}, 0, 'a cleanup by hand spares it as well');
        call($registry, refresh => $a) for 1 .. 3;
        is(server($registry, $a)->{state}, 'down', 'heartbeats do not bring it back');
        is(answers($registry, 2), '502', 'and it takes no requests');
        ok(call($registry, toggle => $a, action => 'enable')->{json}{data}{enabled}, 'enabled by hand');
        call($registry, refresh => $a);
        is(answers($registry, 1), 'a', 'it does');
        call($registry, remove => $a);
    };
}

subtest 'an enabled server that is silent waits for its heartbeat' => sub {
    call('silent', add => $a);
    call('silent', toggle => $a, action => 'disable');
    sleep 1.5 * $TTL;
    call('silent', toggle => $a, action => 'enable');
    is(answers('silent', 1), '502', 'enable is no sign of life');
    call('silent', add => $a);
    is(answers('silent', 1), 'a', 'a heartbeat is');
    call('silent', remove => $a);
};

subtest 'a server disabled with requests on it finishes them' => sub {
    call('main', add => $a);
    my @slow = map { slow('main', 0.3) } 1 .. 3;
    ok(wait_until(sub { server('main', $a)->{connections} == 3 }), 'three requests are on it');
    call('main', toggle => $a, action => 'disable');
    is(server('main', $a)->{connections}, 3, 'and stay counted');
    is(answers('main', 1), '502', 'no further one gets there');
    is($_->response->{status}, 200, 'they are answered') for @slow;
    ok(wait_until(sub { server('main', $a)->{connections} == 0 }), 'and counted off');
    call('main', remove => $a);
};

subtest 'drain lets requests finish and sends no new ones, until enable' => sub {
    call('main', add => $_) for $a, $b;
    call('main', weight => $b, weight => 0);
    my @slow = map { slow('main', 0.3) } 1 .. 2;
    ok(wait_until(sub { server('main', $a)->{connections} == 2 }), 'two requests are on it');
    call('main', weight => $b, weight => 1);
    is(call('main', drain => $a)->{json}{data}{connections}, 2, 'drain tells how many it has');
    is(answers('main'), 'b', 'new ones go elsewhere');
    my $server = server('main', $a);
    is("$server->{state} $server->{enabled} $server->{connections}", 'draining 1 2', 'status says that it is draining');
    is($_->response->{headers}{'x-backend'}, 'a', 'its requests are answered') for @slow;
    ok(wait_until(sub { server('main', $a)->{connections} == 0 }), 'and it ends with none');
    call('main', $_ => $a) for qw(refresh add);
    is(answers('main'), 'b', 'a heartbeat does not end the drain');
    is(call('main', drain => $a)->{json}{data}{connections}, 0, 'to drain it again is no mistake');
    call('main', toggle => $a, action => 'enable');
    is(server('main', $a)->{state}, 'up', 'enable ends it');
    is(answers('main'), 'a b', 'and it takes requests');
    call('main', remove => $_) for $a, $b;
};

subtest 'a server of weight 0 takes no new requests' => sub {
    call('main', add => $a);
    call('main', add => $b, weight => 0);
    is(answers('main'), 'a', 'from its registration on');
    is(call('main', weight => $b, weight => 2)->{json}{data}{weight}, 2, 'given a weight');
    is(answers('main'), 'a b', 'it does');
    my $slow = slow('main', 0.3);
    ok(wait_until(sub { grep { $_->{connections} } map { server('main', $_) } $a, $b }), 'with a request under way');
    call('main', weight => $_, weight => 0) for $a, $b;
    is(answers('main', 1), '502', 'all of weight 0: nobody is eligible');
    is($slow->response->{status}, 200, 'the request is answered all the same');
    is(server('main', $b)->{state}, 'up', 'weight 0 is no fault of the server');
    call('main', remove => $_) for $a, $b;
};

subtest 'an add of a known server changes only the parameters given' => sub {
    call('main', add => $a, weight => 5, max_conns => 70);
    my $first = server('main', $a);
    is(answers('main', 3), 'a', 'it takes requests');
    is(server('main', $a)->{requests}, 3, 'three so far');

    my %is = (weight => 5, max_conns => 70);
    for my $change ({}, { weight => 6 }, { max_conns => 0 }, { weight => 2, max_conns => 9 }) {
        %is = (%is, %$change);
        my $data = call('main', add => $a, %$change)->{json}{data};
        my $given = join(' and ', sort keys %$change) || 'nothing';
        is("$data->{weight} $data->{max_conns}", "$is{weight} $is{max_conns}", "add with $given changes $given");
        my $server = server('main', $a);
        is("$server->{weight} $server->{max_conns}", "$is{weight} $is{max_conns}", 'and status agrees');
    }
    call('main', drain => $a);
    call('main', add => $a, weight => 8);
    my $server = server('main', $a);
    is("$server->{state} $server->{weight}", 'draining 8', 'nor does it end a drain');
    is($server->{requests}, 3, 'statistics stay');
    is($server->{created_at}, $first->{created_at}, 'so does the time of its creation');
    ok($server->{updated_at} > $first->{updated_at}, 'the time of the last change is renewed');
    ok($server->{last_heartbeat} > $first->{last_heartbeat}, 'and it was a heartbeat');
    my $updated = $server->{updated_at};
    call('main', refresh => $a);
    is(server('main', $a)->{updated_at}, $updated, 'which by itself is no change');
    call('main', remove => $a);
};

subtest 'on_duplicate reject: an add of a known server is refused and changes nothing' => sub {
    call('strict', add => $a, weight => 5);
    call('strict', toggle => $a, action => 'disable');
    my $before = server('strict', $a);
    is(call('strict', add => $a, weight => 6)->{status}, 409, 'refused');
    my $after = server('strict', $a);
    delete @$_{qw(time_since_heartbeat)} for $before, $after;
    is_deeply($after, $before, 'it was no heartbeat either');
    is(call('strict', refresh => $a)->{status}, 200, 'refresh is the heartbeat there');
    call('strict', remove => $a);
    is(call('strict', add => $a)->{status}, 200, 'once removed it may be added');
};

$node->log_is_clean;
done_testing;
