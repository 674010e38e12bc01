# Health checks by HTTP: what is asked for, which answers pass, and why others don't.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my ($plain, $other, $line) = map { RegistryTest->backend(name => $_) } qw(plain other line);
my $six = RegistryTest->backend(name => 'six', host => '::1');
my $unix = RegistryTest->backend(name => 'unix', host => 'unix');
my @once = ('fails=1', 'passes=1');
$node = checked({
    plain  => [@once],
    asks   => [ 'uri=/api/status?deep=1&x=%20', 'host=shop.example', @once ],
    port   => [ 'port=' . $other->port, @once ],
    static => { check => [ 'uri=/ping', @once ], upstream => 'server ' . $unix->address . '; server ' . $line->address . ';' },
    some   => [ 'status=200,301-302,404', @once ],
    one    => [ 'status=204', @once ],
    body   => [ 'body~^ok[0-9]+$', @once ],
    spaced => { check => [ 'fails=1', 'passes=1', 'body', '~', 'all (is|are) well' ] },
    quoted => { check => [ 'fails=1', 'passes=1', 'body~all is well' ] },
});

subtest 'what is asked for' => sub {
    call('plain', add => $plain);
    after_checks('plain', $plain, 1);
    my $last = $plain->stats->{last};
    is($last->{method}, 'GET', 'GET');
    is($last->{uri}, '/', '/ where nothing else is said');
    is($last->{headers}{host}, $plain->address, 'of the server');
    is($last->{headers}{connection}, 'close', 'for once');
    is($last->{headers}{'user-agent'}, 'ngx-upstream-registry (health check)', 'by somebody');
    ok(!exists $last->{headers}{$_}, "without $_") for qw(content-length transfer-encoding);
    call('plain', remove => $plain);

    call('asks', add => $plain);
    after_checks('asks', $plain, 1);
    $last = $plain->stats->{last};
    is($last->{uri}, '/api/status?deep=1&x=%20', 'the uri, to the letter');
    is($last->{headers}{host}, 'shop.example', 'the host');
    call('asks', remove => $plain);
};

subtest 'another port' => sub {
    my $before = $other->stats->{requests};
    call('port', add => "127.0.0.1:1");
    my $health = after_checks('port', '127.0.0.1:1', 3);
    is($health->{fails}, 0, 'nobody listens at the port of the server, and nobody asks there');
    cmp_ok($other->stats->{requests} - $before, '>=', 3, 'the other was asked');
    is($other->stats->{last}{headers}{host}, $other->address, 'by its address');
    is(state('port', '127.0.0.1:1'), 'up', 'which is up');
};

subtest 'IPv6, and unix sockets' => sub {
    call('plain', add => $six);
    is(after_checks('plain', $six, 2)->{fails}, 0, '[::1] passes');
    is($six->stats->{last}{headers}{host}, $six->address, 'with brackets');
    call('plain', remove => $six);
    my $health = after_checks('static', $unix, 2, 'a server line with a unix socket is checked');
    is($health->{fails}, 0, 'and passes');
    is($unix->stats->{last}{uri}, '/ping', 'at its path');
    is($unix->stats->{last}{headers}{host}, 'localhost', 'as localhost, as in stock nginx');
    is(after_checks('static', $line, 2)->{fails}, 0, 'another server line too');
    $unix->set(status => 500);
    becomes('static', $unix, 'unhealthy', 'a unix socket fails');
    is(answers('static'), 'line', 'and gets no requests');
    $unix->clear;
    becomes('static', $unix, 'up', 'until it is well');
};

# Lets one check see what the backend now does, and tells how it went: "passes", or why not.
sub verdict {
    my ($registry, %set) = @_;
    $plain->clear;
    $plain->set(%set) if %set;
    call($registry, add => $plain) unless server($registry, $plain);
    # One may be under way since before.
    my $count = health($registry, $plain)->{checks};
    my $health;
    wait_until(sub { $health = health($registry, $plain); $health->{checks} >= $count + 2 });
    return defined $health->{last_error} ? $health->{last_error} : 'passes';
}

subtest 'which status passes' => sub {
    is(verdict('plain', status => $_), 'passes', "status $_") for 200, 204, 301, 304, 399;
    is(verdict('plain', status => $_), "status $_", "not $_") for 400, 404, 500, 503;
    is(verdict('some', status => $_), 'passes', "$_, with a list") for 200, 301, 302, 404;
    is(verdict('some', status => $_), "status $_", "not $_") for 201, 300, 303, 403, 405;
    is(verdict('one', status => 204), 'passes', '204 alone');
    is(verdict('one'), 'status 200', 'and nothing else');
    call($_, remove => $plain) for qw(plain some one);
};

subtest 'what the body is' => sub {
    is(verdict('body', body => 'ok17'), 'passes', 'it matches');
    is(verdict('body', body => 'ok17', chunked => 1), 'passes', 'in chunks');
    is(verdict('body', body => 'ok17', drip => 0.1), 'passes', 'byte by byte');
    is(verdict('body', body => 'ok17', drip => 0.1, chunked => 1), 'passes', 'in chunks of a byte');
    is(verdict('body', body => 'ok17', keepalive => 0), 'passes', 'with a close after it');
    is(verdict('body', body => $_), 'body does not match', "\"$_\"") for 'ok', 'OK17', 'not ok17', '';
    is(verdict('body', body => 'ok17', status => 503), 'status 503', 'the status counts first');
    is(verdict('body', status => 204), 'body does not match', 'no body is an empty one');
    call('body', remove => $plain);
    for my $registry (qw(spaced quoted)) {
        is(verdict($registry, body => 'I think that all is well here'), 'passes', "$registry: words");
        is(verdict($registry, body => 'nothing is well'), 'body does not match', 'other words');
        call($registry, remove => $plain);
    }
};

subtest 'how much of the body is looked at' => sub {
    my $probed = RegistryTest->probed;
    my $answer = sub {
        my ($before, $after) = @_;
        my $length = $before + 11 + $after;
        return [ 'read', [ send => "HTTP/1.1 200 OK\r\nContent-Length: $length\r\n\r\n" . 'x' x $before . 'all is well' . 'y' x $after ], 'close' ];
    };
    my $verdict = sub {
        $probed->behave($_[0]);
        my $count = health('quoted', $probed)->{checks};
        my $health;
        wait_until(sub { $health = health('quoted', $probed); $health->{checks} >= $count + 2 });
        return defined $health->{last_error} ? $health->{last_error} : 'passes';
    };
    call('quoted', add => $probed);
    is($verdict->($answer->(4095, 5)), 'passes', 'over the end of a page');
    is($verdict->($answer->(200_000, 0)), 'passes', 'far behind');
    is($verdict->($answer->(262_144 - 11, 0)), 'passes', 'at the end of 256k');
    is($verdict->($answer->(262_144 - 11, 300_000)), 'passes', 'in the first 256k of more');
    is($verdict->($answer->(262_144 - 10, 300_000)), 'body does not match', 'not behind that');
    call('quoted', remove => $probed);
};

# Answers of all kinds that are none of nginx's, and pass.
subtest 'what else passes' => sub {
    my %answers = (
        'HTTP/1.0 without a length'  => "HTTP/1.0 200 OK\r\n\r\nall is well",
        'HTTP/1.1 without a length'  => "HTTP/1.1 200 OK\r\n\r\nall is well",
        'no words after the status'  => "HTTP/1.1 200\r\nContent-Length: 11\r\n\r\nall is well",
        'interim answers before it'  => "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is well",
        'names in any case'          => "HTTP/1.1 200 OK\r\ncontent-LENGTH:11\r\n\r\nall is well and more",
        'chunks with extensions and a trailer' => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nall \r\n7\r\nis well\r\n0\r\nX-Sum: 1\r\n\r\n",
        'chunks in capitals and with zeros'    => "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n000B\r\nall is well\r\n000\r\n\r\n",
        'lines without a carriage return'      => "HTTP/1.1 200 OK\nContent-Length: 11\n\nall is well",
        'a head of some kilobytes'   => "HTTP/1.1 200 OK\r\n" . join('', map { "X-Header-$_: " . 'v' x 50 . "\r\n" } 1 .. 60) . "Content-Length: 11\r\n\r\nall is well",
    );
    my @names = sort keys %answers;
    my $probed = RegistryTest->probed(count => scalar @names);
    for my $i (0 .. $#names) {
        $probed->behave([ 'read', [ send => $answers{ $names[$i] } ], 'close' ], $i);
        call('quoted', add => $probed->address($i));
    }
    for my $i (0 .. $#names) {
        my $health = after_checks('quoted', $probed->address($i), 2, $names[$i]);
        is($health->{last_error}, undef, 'passes');
    }
    # As a server would that keeps the connection.
    my $keeps = RegistryTest->probed(how => [ 'read', [ send => "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is well" ] ]);
    call('quoted', add => $keeps);
    my $health = after_checks('quoted', $keeps, 3, 'a server that does not close');
    is($health->{fails}, 0, 'passes all the same');
    cmp_ok($health->{latency_ms}, '<', 400 * time_scale(), 'and is not waited for');
    call('quoted', remove => $_) for $keeps, map { $probed->address($_) } 0 .. $#names;
};

$node->log_is_clean;
done_testing;
