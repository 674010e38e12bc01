# A zone that is full: it says so, to the client and in the log, and goes on with the servers it has.

use lib 't/lib';
use RegistryTest;

my $backend = RegistryTest->backend(name => 'a');
my $node = RegistryTest->nginx(
    workers => 2,
    http    => 'registry main 128k { }
        registry names 128k { }
        upstream backend { registry main; }',
    server  => 'location /upstream/ { registry_api main; }
        location /names/ { registry_api names; }
        location / { proxy_pass http://backend; }',
);

# Many requests over one connection, so many of them at a time. Returns the replies.
sub pipeline {
    my ($path, @bodies) = @_;
    my $client = $node->client;
    my @replies;
    while (my @some = splice @bodies, 0, 100) {
        $client->send(join '', map {
            "POST $path HTTP/1.1\r\nHost: a\r\nContent-Length: " . length($_) . "\r\n\r\n$_"
        } @some);
        push @replies, $client->response for @some;
    }
    return @replies;
}

sub addresses { my ($namespace) = @_; return join ' ', sort keys %{ servers($node, $namespace) } }

sub full_lines { return $node->grep_log(qr/\[error\].* registry "main": .*full/) }

my $room;
{
    api($node, 'add', { port => $backend->port });
    my $since = time;
    my @wanted = map { sprintf '10.0.%d.%d', $_ >> 8, $_ & 255 } 1 .. 2000;
    my @replies = pipeline('/upstream/add', map { "host=$_&port=80" } @wanted);
    my ($first_full) = grep { $replies[$_]{status} != 200 } 0 .. $#replies;
    ok($first_full, 'a small zone gets full');
    $room = $first_full + 1;
    cmp_ok($room, '>=', 100, 'of the smallest size it has room for about a hundred servers');

    my %statuses;
    $statuses{ $_->{status} }++ for @replies[ $first_full .. $#replies ];
    is(join(' ', keys %statuses), '507', 'and from then on every add is refused');
    is($replies[-1]{json}{code}, 507, 'in JSON');
    is($replies[-1]{json}{message}, 'The zone is full: no room for another server; give the registry a larger size',
        'which says what to do');
    like($replies[-1]{headers}{'content-type'}, qr{^application/json; charset=utf-8$}, 'with its type');
    is(addresses(), join(' ', sort '127.0.0.1:' . $backend->port, map { "$_:80" } @wanted[ 0 .. $first_full - 1 ]),
        'all that were there still are, and no other');
    my $infos = () = $node->grep_log(qr/\[info\].* registry "main": 507: .*full/);
    my @errors = full_lines();
    is(@errors + $infos, 2000 - $first_full, 'each refusal is a line');
    my $seconds = 2 + time - $since;
    ok(@errors >= 1 && @errors <= 2 * $seconds, 'of which one in a second, in each worker, is an error')
        or diag(@errors . " error lines in $seconds s");
    like((full_lines())[0],
        qr/507: The zone is full: no room for another server; give the registry a larger size, client: 127\.0\.0\.1, /,
        'with the same words and the client');
}

# The next error line says how many were left out.
{
    my ($first) = full_lines();
    sleep 1.1;
    my $from = $node->log_size;
    api($node, 'add', { host => '10.8.8.8', port => 80 }) for 1 .. 20;    # both workers have their turn
    my ($line) = $node->grep_log(qr/\[error\].*full.*times before/, $from);
    like($line, qr/507: The zone is full: .* a larger size, and \d+ times before, client: /, 'a later one counts them');
}

# What needs no room works as before.
{
    is(api($node, 'add', { host => '10.0.0.1', port => 80, weight => 7 })->{json}{data}{weight}, 7, 'add of a known server');
    is(api($node, 'refresh', { host => '10.0.0.2', port => 80 })->{status}, 200, 'refresh');
    is(api($node, 'toggle', { host => '10.0.0.3', port => 80, action => 'disable' })->{status}, 200, 'toggle');
    is(api($node, 'reset')->{json}{data}{servers_reset}, $room, 'reset');
    is($node->get('/upstream/health')->{json}{data}{total_servers}, $room, 'health');
}

# A refused server leaves no namespace behind.
{
    is(api($node, 'add', { ns => 'other', port => 80 })->{status}, 507, 'a server of another namespace is refused');
    is($node->get('/upstream/status?ns=other')->{status}, 404, 'and its namespace is not there');
    is($node->get('/upstream/status')->{json}{total}, $room, 'the first namespace is still the only one');
}

# One out, one in.
{
    is(api($node, 'remove', { host => '10.0.0.1', port => 80 })->{status}, 200, 'a removal');
    is(api($node, 'add', { host => '10.9.9.9', port => 80 })->{status}, 200, 'makes room');
    is(api($node, 'add', { host => '10.9.9.8', port => 80 })->{status}, 507, 'for one');
    is(status($node)->{total}, $room, 'it is full again');
}

# Emptied and filled again, it takes as many: nothing leaks.
for my $round (1, 2) {
    my @known = grep { !/^127/ } keys %{ servers($node) };
    my @replies = pipeline('/upstream/remove', map { /(.*):(\d+)/; "host=$1&port=$2" } @known);
    is(scalar(grep { $_->{status} != 200 } @replies), 0, "round $round: all are removed but one");
    is($node->get('/')->{body}, "a\n", "round $round: which gets the requests") if $round == 1;
    @replies = pipeline('/upstream/add', map { "host=[2001:db8::$_]&port=65535" } 1 .. $room);
    is(scalar(grep { $_->{status} == 200 } @replies), $room - 1, "round $round: as many as before find room");
    is($replies[-1]{status}, 507, "round $round: and not one more");
}

# A zone full of namespaces.
{
    my @replies = pipeline('/names/add', map { "ns=n$_&port=80" } 1 .. 1000);
    my ($first_full) = grep { $replies[$_]{status} != 200 } 0 .. $#replies;
    ok($first_full, 'a zone may be full of namespaces');
    is($replies[-1]{status}, 507, 'every further one is refused');
    like($replies[-1]{json}{message}, qr/^The zone is full: no room for another (?:namespace|server); give the registry a larger size$/,
        'with a message that says so');
    my @lost = grep { $node->get("/names/status?ns=n$_")->{json}{total} != 1 } 1 .. $first_full;
    is("@lost", '', 'those that were there still are');
    is($node->get('/names/status?ns=n1000')->{status}, 404, 'the others are not');
    is($node->post('/names/remove', body => 'ns=n1&port=80')->{status}, 200, 'one out');
    is($node->post('/names/add', body => 'ns=n1000&port=80')->{status}, 200, 'one in');
}

$node->log_is_clean;
done_testing;
