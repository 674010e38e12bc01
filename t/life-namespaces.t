# Namespaces: they come with their first server and go with the last; those that the
# configuration names are always there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TTL = 0.3 * time_scale();
my $node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 1m { heartbeat_ttl 1h; }
        registry short 256k { heartbeat_ttl ' . 1000 * $TTL . 'ms; cleanup_interval 50ms; on_expire remove; }
        upstream backend { registry main; }
        upstream other { registry main namespace=renamed; }
        upstream any { registry main namespace=$arg_service; }
        upstream anyshort { registry short namespace=$arg_service; }',
    server => 'location /upstream/ { registry_api main; }
        location /bound/ { registry_api main namespace=bound; }
        location /short/ { registry_api short; }
        location /to/any { proxy_pass http://any; }
        location /to/anyshort { proxy_pass http://anyshort; }
        location /to/bound { proxy_pass http://any; }',
);
my $backend = RegistryTest->backend(name => 'a');
my %here = (host => $backend->host, port => $backend->port);

# The HTTP status of a namespace's status: 404 when there is no such namespace.
sub there { my ($ns, $api) = @_; return $node->get(($api || '/upstream/') . "status?ns=$ns")->{status} }

subtest 'namespaces of the configuration exist from the start' => sub {
    for my $ns (qw(backend renamed bound)) {
        is(there($ns), 200, "$ns is there");
        is(status($node, $ns)->{total}, 0, 'without a server');
    }
    is(there('other'), 404, 'the name of an upstream that names another is none');
    is(there('any'), 404, 'nor is that of one whose namespace is a variable');
    is($node->get('/upstream/health?ns=backend')->{json}{status}, 'unhealthy', 'one without servers is unhealthy');
};

subtest 'others come with the first server' => sub {
    is(there('shop'), 404, 'there is none before');
    like($node->get('/upstream/status?ns=shop')->{json}{message}, qr/shop/, 'and the answer names it');
    for my $endpoint (qw(refresh remove drain)) {
        is(api($node, $endpoint, { ns => 'shop', %here })->{status}, 404, "$endpoint does not make it");
        is(there('shop'), 404, 'it is not there');
    }
    is(api($node, 'add', { ns => 'shop', host => 'no address', port => 1 })->{status}, 400, 'nor does an add that is refused');
    is(there('shop'), 404, 'it is not there');
    is($node->get('/to/any?service=shop')->{status}, 502, 'nor does a request');
    like($node->wait_log(qr/namespace "shop"/), qr/no such namespace/, 'of which the log says what is missing');
    is(there('shop'), 404, 'it is not there');

    is(api($node, 'add', { ns => 'shop', %here })->{status}, 200, 'an add does');
    is(there('shop'), 200, 'it is there');
    is($node->get('/to/any?service=shop')->{status}, 200, 'and takes requests');
    is(there('Shop'), 404, 'capitals are another name');
};

subtest 'namespaces do not see each other' => sub {
    api($node, 'add', { ns => $_, %here }) for qw(one two);
    api($node, 'weight', { ns => 'one', weight => 7, %here });
    api($node, 'toggle', { ns => 'two', action => 'disable', %here });
    is(servers($node, 'one')->{ $backend->address }{state}, 'up', 'disabled in one, a server is up in the other');
    is(servers($node, 'two')->{ $backend->address }{weight}, 1, 'and has its own weight');
    is($node->get('/to/any?service=one')->{status}, 200, 'requests go to the one');
    is($node->get('/to/any?service=two')->{status}, 502, 'and not to the other');
    is(servers($node, 'one')->{ $backend->address }{requests}, 1, 'each counts its own');
    is(servers($node, 'two')->{ $backend->address }{requests}, 0, 'requests');
    api($node, 'remove', { ns => $_, %here }) for qw(one two);
};

subtest 'they go with the last server' => sub {
    api($node, 'add', { ns => 'shop', host => '127.0.0.9', port => 9 });
    api($node, 'remove', { ns => 'shop', %here });
    is(there('shop'), 200, 'with one of two servers gone it stays');
    api($node, 'toggle', { ns => 'shop', host => '127.0.0.9', port => 9, action => 'disable' });
    is(there('shop'), 200, 'with a disabled one as well');
    api($node, 'remove', { ns => 'shop', host => '127.0.0.9', port => 9 });
    is(there('shop'), 404, 'with the last it goes');
    is($node->get('/to/any?service=shop')->{status}, 502, 'requests find nobody');
    api($node, 'add', { ns => 'shop', %here });
    is($node->get('/to/any?service=shop')->{status}, 200, 'it may come again');
    is(servers($node, 'shop')->{ $backend->address }{requests}, 1, 'as a new one');
    api($node, 'remove', { ns => 'shop', %here });
};

subtest 'those of the configuration stay' => sub {
    for my $ns (qw(backend bound)) {
        api($node, 'add', { ns => $ns, %here });
        is(status($node, $ns)->{total}, 1, "$ns with a server");
        api($node, 'remove', { ns => $ns, %here });
        is(there($ns), 200, 'and without');
    }
};

subtest 'one whose servers all fell silent goes with the last of them' => sub {
    $node->post('/short/add', body => form({ ns => 'brief', %here }));
    is(there('brief', '/short/'), 200, 'it is there');
    ok(wait_until(sub { there('brief', '/short/') == 404 }), 'and goes when its server is removed for silence');
};

subtest 'requests under way end well when their namespace goes' => sub {
    api($node, 'add', { ns => 'shop', %here });
    my @slow = map { $node->client } 1 .. 3;
    $_->send("GET /to/any?service=shop&delay=0.4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") for @slow;
    ok(wait_until(sub { connections($node, 'shop') == 3 }), 'three requests are under way');
    api($node, 'remove', { ns => 'shop', %here });
    is(there('shop'), 404, 'the namespace is gone');
    api($node, 'add', { ns => 'shop', %here });
    is(connections($node, 'shop'), 0, 'one that takes its name has none of them');
    is($_->response->{status}, 200, 'they are answered') for @slow;
    is(connections($node, 'shop'), 0, 'and its count is not touched');
    is($node->get('/to/any?service=shop')->{status}, 200, 'it takes requests');
    ok(wait_until(sub { connections($node, 'shop') == 0 }), 'and counts them off');
    api($node, 'remove', { ns => 'shop', %here });
};

subtest 'without ns the only namespace of the zone is meant' => sub {
    is($node->get('/upstream/status')->{status}, 400, 'where there are several, an error says so');
    is($node->get('/short/status')->{status}, 400, 'and where there is none');
    $node->post('/short/add', body => form({ ns => 'brief', %here }));
    my $reply = $node->get('/short/status');
    is("$reply->{status} $reply->{json}{data}[0]{namespace}", '200 brief', 'the only one is found');
    is($node->post('/short/refresh', body => form({%here}))->{status}, 200, 'by a heartbeat too');
};

subtest 'hundreds of namespaces come and go' => sub {
    my $client = $node->client;
    my $count = 300;
    my @bad;
    for my $round (1, 2) {
        for my $endpoint (qw(add remove)) {
            push @bad, grep { $_ != 200 } map {
                $client->post("/upstream/$endpoint", body => form({ ns => "n$_", %here }))->{status}
            } 1 .. $count;
            is(there("n$count"), $endpoint eq 'add' ? 200 : 404, "the last one after $endpoint, round $round");
        }
    }
    is("@bad", '', 'no answer other than 200');
};

$node->log_is_clean;
done_testing;
