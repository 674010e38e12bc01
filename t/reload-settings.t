# Settings that a reload changes hold from then on, for servers that are there already too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $SHORT = 300 * time_scale() . 'ms';
my $node = RegistryTest->nginx(workers => 2);
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);

sub configure {
    my ($registry, $upstream) = @_;
    $node->set_conf(
        http => "registry main 512k { $registry } upstream backend { registry main; " . ($upstream || '') . ' }',
        server => 'location /upstream/ { registry_api main; } location / { proxy_pass http://backend; }',
    );
    return $node->reload;
}
sub call {
    my ($endpoint, $backend, %more) = @_;
    return api($node, $endpoint, { host => $backend->host, port => $backend->port, %more });
}
sub server { my ($backend) = @_; return servers($node)->{ $backend->address } }
sub answers {
    my ($count) = @_;
    return join ' ', map { $_->{headers}{'x-backend'} || $_->{status} } map { $node->get('/') } 1 .. $count;
}

subtest 'a shorter heartbeat_ttl makes expire who has been silent for longer' => sub {
    configure('heartbeat_ttl 1h; cleanup_interval 1h;');
    call(add => $a);
    sleep 0.5 * time_scale();
    is(server($a)->{state}, 'up', 'a silent server under a long TTL');
    ok(configure("heartbeat_ttl $SHORT; cleanup_interval 1h;"), 'the TTL becomes shorter than its silence');
    is(answers(1), '502', 'it is out of rotation');
    is(server($a)->{state}, 'expired', 'having expired');
};

for my $long ('1h', 0) {
    subtest "heartbeat_ttl $long: who was silent for too long no longer is" => sub {
        configure("heartbeat_ttl $SHORT; cleanup_interval 1h;");
        call(add => $a);
        sleep 0.5 * time_scale();
        is(answers(1), '502', 'a server has expired, and a request has noticed');
        is(server($a)->{state}, 'expired', 'its state');
        ok(configure("heartbeat_ttl $long; cleanup_interval 100ms;"), 'the TTL becomes longer than its silence');
        is(server($a)->{state}, 'up', 'it has not expired any more');
        is(answers(1), 'a', 'and takes requests');
        is($node->get('/upstream/health')->{json}{status}, 'healthy', 'as health says');
    };
}

subtest 'the timer keeps the new interval and the new on_expire' => sub {
    configure("heartbeat_ttl $SHORT; cleanup_interval 1h; on_expire disable;");
    call(add => $a);
    sleep 0.5 * time_scale();
    ok(server($a)->{enabled}, 'under a long interval nothing is done to a silent server');
    configure("heartbeat_ttl $SHORT; cleanup_interval 50ms; on_expire disable;");
    ok(wait_until(sub { !server($a)->{enabled} }), 'under a short one it is disabled soon');
    configure("heartbeat_ttl $SHORT; cleanup_interval 50ms; on_expire remove;");
    ok(wait_until(sub { !server($a) }), 'under on_expire remove it is removed');
};

subtest 'on_duplicate' => sub {
    configure('on_duplicate reject;');
    call(add => $a);
    is(call(add => $a)->{status}, 409, 'reject');
    configure('on_duplicate refresh;');
    is(call(add => $a)->{status}, 200, 'becomes refresh');
    call(remove => $a);
};

subtest 'the balancing method' => sub {
    configure('', 'registry_balance least_conn;');
    call(add => $_) for $a, $b;
    # A request on a all the time: what least_conn would choose is b.
    my $slow = $node->client;
    $slow->send("GET /?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    ok(wait_until(sub { connections($node) == 1 }), 'a request stays on one server');
    my ($busy) = grep { server($_)->{connections} } $a, $b;
    my $free = $busy == $a ? $b : $a;
    is(answers(4), join(' ', ($free->name) x 4), 'least_conn chooses the other');
    ok($node->set_conf(http => $node->{http} =~ s/least_conn/round_robin/r) && $node->reload(wait => 'new'), 'a reload');
    is(join(' ', sort split / /, answers(4)), 'a a b b', 'round_robin takes turns');
    $slow->close;
    ok(wait_until(sub { connections($node) == 0 }), 'the slow request is counted off by its old worker');
};

$node->log_is_clean;
done_testing;
