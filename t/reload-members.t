# Static members (server lines) and upstreams that a reload adds, changes or removes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $node = RegistryTest->nginx(workers => 2);
my ($a, $b, $c) = map { RegistryTest->backend(name => $_) } qw(a b c);
my $from = 0;

# One upstream "backend" with these server lines ("$a weight=2" and so on), and more of http{}.
sub configure {
    my ($lines, $http) = @_;
    $node->set_conf(
        http => 'registry main 512k { heartbeat_ttl 1h; cleanup_interval 50ms; }
            upstream backend { registry main; registry_balance round_robin; ' . join(' ', map { "server $_;" } @$lines) . ' }' . ($http || ''),
        server => 'location /upstream/ { registry_api main; } location / { proxy_pass http://backend; }
            location /by/ { proxy_pass http://$arg_up; }',
    );
    $from = $node->log_size;
    return $node->reload;
}
sub at { return $_[0]->address }
sub call {
    my ($endpoint, $backend, %more) = @_;
    return api($node, $endpoint, { ns => 'backend', host => $backend->host, port => $backend->port, %more });
}
sub server { my ($backend, $ns) = @_; return servers($node, $ns || 'backend')->{ $backend->address } }
# How many of a number of requests each backend answers: "a:4 b:2".
sub shares {
    my ($count, $path) = @_;
    my %by;
    $by{ $_->{headers}{'x-backend'} || $_->{status} }++ for map { $node->get($path || '/') } 1 .. $count;
    return join ' ', map { "$_:$by{$_}" } sort keys %by;
}
sub members { return join ' ', sort map { my $addr = $_; map { $_->name } grep { $_->address eq $addr } $a, $b, $c } keys %{ servers($node, 'backend') } }

subtest 'members come and go with their lines' => sub {
    ok(configure([]), 'an upstream without members');
    is(shares(1), '502:1', 'has nobody to send requests to');
    ok(configure([ at($a) ]), 'a member');
    is(members(), 'a', 'is there');
    is(shares(4), 'a:4', 'and takes requests');
    ok(configure([ at($a), at($b) ]), 'a second');
    is(shares(4), 'a:2 b:2', 'takes its share');
    ok(configure([ at($b), at($c) ]), 'one goes, one comes');
    is(members(), 'b c', 'they are there');
    is(shares(4), 'b:2 c:2', 'and share the requests');
    is(scalar($node->grep_log(qr/\[notice\] .*server \Q${\ at($a)}\E removed in namespace "backend"/, $from)), 1, 'the log tells of the one that went');
    configure([]);
    is(members(), '', 'without lines all go');
};

subtest 'members take what their lines say now' => sub {
    configure([ at($a), at($b) ]);
    ok(configure([ at($a) . ' weight=3 max_conns=7', at($b) ]), 'other parameters');
    is(server($a)->{weight} . ' ' . server($a)->{max_conns}, '3 7', 'are in status');
    is(shares(8), 'a:6 b:2', 'and in the shares');
    configure([ at($a) . ' backup', at($b) ]);
    is(shares(4), 'b:4', 'a backup takes none');
    ok(server($a)->{backup}, 'and is one in status');
    $b->kill;
    is(shares(1), 'a:1', 'until the others fail');
    $b->start;
    configure([ at($a), at($b) . ' weight=2' ]);
    ok(!server($a)->{backup}, 'it is an ordinary member again');
    api($node, 'reset', { ns => 'backend' });
    is(shares(6), 'a:2 b:4', 'with its share');
};

subtest 'a weight set by hand lasts until the next reload' => sub {
    configure([ at($a) . ' weight=2', at($b) ]);
    call(weight => $a, weight => 9);
    is(server($a)->{weight}, 9, 'set');
    $node->reload;
    is(server($a)->{weight}, 2, 'the configuration counts again');
};

subtest 'down' => sub {
    configure([ at($a), at($b) ]);
    ok(configure([ at($a) . ' down', at($b) ]), 'a member is declared down');
    is(server($a)->{state} . ' ' . server($a)->{enabled}, 'down 0', 'and is');
    is(shares(3), 'b:3', 'it takes no requests');
    $node->reload;
    is(server($a)->{state}, 'down', 'so it stays over a reload');
    call(toggle => $a, action => 'enable');
    is(shares(4), 'a:2 b:2', 'until it is enabled by hand');
    $node->reload;
    is(server($a)->{state}, 'up', 'which a reload of the same line does not undo');
    configure([ at($a), at($b) ]);
    is(server($a)->{state}, 'up', 'without the word it stays up');
    configure([ at($a) . ' down', at($b) ]);
    is(server($a)->{state}, 'down', 'with it, it is down once more');
    configure([ at($a), at($b) ]);
    is(server($a)->{state}, 'up', 'and when the word goes, it is up');
};

subtest 'a member disabled by hand stays so over reloads' => sub {
    configure([ at($a), at($b) ]);
    call(toggle => $a, action => 'disable');
    $node->reload;
    is(server($a)->{disabled_reason}, 'manual', 'of the same configuration');
    configure([ at($a) . ' weight=4', at($b) ]);
    is(server($a)->{enabled} . ' ' . server($a)->{weight}, '0 4', 'and of another');
    is(shares(3), 'b:3', 'it takes no requests');
    call(toggle => $a, action => 'enable');
    is(server($a)->{state}, 'up', 'until it is enabled');
    call(drain => $b);
    $node->reload;
    is(server($b)->{state}, 'draining', 'a drain stays as well');
    call(toggle => $b, action => 'enable');
};

subtest 'a registered server that becomes a member, and back' => sub {
    configure([ at($a) ]);
    call(add => $b, weight => 2);
    $node->get('/') for 1 .. 3;
    my $requests = server($b)->{requests};
    ok($requests, 'a registered server has taken requests');
    ok(configure([ at($a), at($b) ]), 'it becomes a member');
    is(server($b)->{requests}, $requests, 'and is the same server');
    is(status($node, 'backend')->{total}, 2, 'not a second one');
    is(call(remove => $b)->{status}, 409, 'as a member it cannot be removed');
    is(call(add => $b)->{status}, 200, 'its heartbeats are welcome');
    configure([ at($a) ]);
    is(members(), 'a', 'its line gone, it goes');
    is(call(add => $b)->{status}, 200, 'its next add');
    is(members(), 'a b', 'registers it anew');
    call(remove => $b);
};

subtest 'requests under way on a member that goes end well' => sub {
    configure([ at($a), at($b) ]);
    my @slow = map { $node->client } 1 .. 4;
    $_->send("GET /?delay=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") for @slow;
    ok(wait_until(sub { connections($node, 'backend') == 4 }), 'four requests');
    $node->set_conf(http => $node->{http} =~ s/server \Q${\ at($a)}\E;//r);
    ok($node->reload(wait => 'new'), 'one of two members goes');
    is(members(), 'b', 'it is not there any more');
    is(server($b)->{connections}, 2, 'the other has its two requests');
    $node->set_conf(http => $node->{http} =~ s/(server \Q${\ at($b)}\E;)/$1 server ${\ at($a)};/r);
    ok($node->reload(wait => 'new'), 'it comes back');
    is(server($a)->{connections}, 0, 'as a new one without requests');
    is(join(' ', map { $_->response->{status} } @slow), '200 200 200 200', 'all are answered');
    ok(wait_until(sub { connections($node, 'backend') == 0 }), 'and counted off where they were counted');
    is(shares(4), 'a:2 b:2', 'requests go to both');
};

subtest 'upstreams come and go' => sub {
    configure([ at($a) ]);
    ok(configure([ at($a) ], ' upstream more { registry main; } upstream again { registry main namespace=backend; }'), 'two more');
    is(status($node, 'more')->{total}, 0, 'a new namespace is there');
    is(shares(2, '/by/?up=again'), 'a:2', 'another upstream on a namespace has its servers');
    is($node->get('/by/?up=more')->{status}, 502, 'one without servers has nobody');
    api($node, 'add', { ns => 'more', host => $c->host, port => $c->port });
    is(shares(2, '/by/?up=more'), 'c:2', 'until a server registers');
    ok(configure([ at($a) ]), 'they go');
    is(server($c, 'more')->{state}, 'up', 'the servers registered in the namespace stay');
    is(members(), 'a', 'and those of the other');
    api($node, 'remove', { ns => 'more', host => $c->host, port => $c->port });
    is($node->get('/upstream/status?ns=more')->{status}, 404, 'no longer configured, the namespace goes with its last server');
    configure([ at($a) ], ' upstream more { registry main; }');
    is(status($node, 'more')->{total}, 0, 'configured again it is there');
    configure([ at($a) ]);
    is($node->get('/upstream/status?ns=more')->{status}, 404, 'an empty one goes with its upstream');
};

subtest 'several upstreams that list the same server share it' => sub {
    configure([ at($a) . ' weight=2' ], ' upstream again { registry main namespace=backend; server ' . at($a) . ' weight=5; server ' . at($b) . '; }');
    is(members(), 'a b', 'it is one server, beside the other');
    is(server($a)->{weight}, 2, 'the first line counts');
    configure([], ' upstream again { registry main namespace=backend; server ' . at($a) . ' weight=5; server ' . at($b) . '; }');
    is(server($a)->{weight}, 5, 'without the first the second does');
    is(members(), 'a b', 'and it stays');
};

$node->log_is_clean;
done_testing;
