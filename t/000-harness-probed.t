# The servers that tests of health checks are about: each script does to a client what it says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $GET = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

subtest 'one process is many servers' => sub {
    my $probed = RegistryTest->probed(count => 3);
    is(http(GET => 'http://' . $probed->address($_))->{body}, 'ok', "server $_ answers") for 0 .. 2;
    is(http(GET => 'http://' . $probed->address(1) . '/again')->{status}, 200, 'once more');
    is(join(' ', $probed->counts), '1 2 1', 'each has counted its connections');
    my @log = $probed->log;
    is(join(' ', map { $_->{who} } @log), '0 1 2 1', 'and all know their order');
    is($log[3]{line}, 'GET /again HTTP/1.1', 'the request');
    like($log[3]{head}, qr/\r\nHost: 127/, 'with its head');
    ok(wait_until(sub { !grep { !$_->{ended} } $probed->log }), 'and when it ended');
    is(scalar(() = $probed->log(3)), 1, 'or only the last');
    is($probed->most_at_once, 1, 'never two at once');
    my @clients = map { my $c = RegistryTest->client($probed->address); $c->open; $c } 1 .. 2;
    ok(wait_until(sub { $probed->most_at_once == 2 }), 'until there are');

    $probed->behave('status 503', 2);
    is(http(GET => 'http://' . $probed->address(2))->{status}, 503, 'one is told to fail');
    is(http(GET => 'http://' . $probed->address(1))->{status}, 200, 'the others go on');
    $probed->behave('after 0.2');
    my $start = time;
    is(http(GET => 'http://' . $probed->address(2))->{status}, 200, 'all are told to take their time');
    cmp_ok(time - $start, '>', 0.19, 'and do');
};

subtest 'by unix sockets it knows who asks' => sub {
    my $probed = RegistryTest->probed(unix => 1);
    http(GET => 'http://' . $probed->address . ':/');
    is(($probed->log)[0]{pid}, $$, 'this process');
};

subtest 'bad manners' => sub {
    my $probed = RegistryTest->probed(how => 'slams');
    is(raw($probed->address, ''), '', 'closes');
    my %first = (
        garbage => qr/^[^\r\n]/, early => qr/^HTTP/, redirect => qr/301.*Location: \//s, half => qr/Content-Le\z/, short => qr/ok\z/,
        silent => qr/^\z/, tangle => qr/a!\z/, chunk => qr/0\r\n\r\n\z/,
    );
    for my $how (sort keys %first) {
        $probed->behave($how);
        my $got = eval { raw($probed->address, $GET, timeout => 0.5) };
        like(defined $got ? $got : '', $first{$how}, $how);
    }
    {
        my $client = RegistryTest->client($probed->behave('slow')->address);
        $client->send($GET);
        is($client->read_some, 'H', 'slow: a byte');
        my $start = time;
        is($client->read_some, 'T', 'another');
        cmp_ok(time - $start, '>', 0.9, 'after a second');
        $client->close;
    }
    for my $how (qw(endless headers interim noise blank)) {
        $probed->behave($how);
        my $client = RegistryTest->client($probed->address);
        $client->send($GET);
        my $got = 0;
        while ($got < 5_000_000) { $got += length $client->read_some }
        ok($got, "$how: there is always more");
        $client->close;
    }
    cmp_ok($probed->sent, '>', 25_000_000, 'which is counted');
    ok(wait_until(sub { !grep { !$_->{ended} } $probed->log }), 'who is left is left alone');
    ok(!eval { length raw($probed->behave('resets')->address, $GET) }, 'resets: nothing comes');
};

subtest 'gRPC' => sub {
    my $grpc = RegistryTest->grpc or plan skip_all => 'this machine has no python3-grpcio';
    plan skip_all => 'this curl has no HTTP/2' unless `curl --version` =~ /HTTP2/;
    my $dir = temp_dir();
    my $ask = sub {
        my ($message) = @_;
        spew("$dir/request", pack 'CNa*', 0, length $message, $message);
        return curl('--http2-prior-knowledge', '-H', 'Content-Type: application/grpc', '-H', 'TE: trailers', '--data-binary', "\@$dir/request",
            'http://' . $grpc->address . '/grpc.health.v1.Health/Check');
    };
    is(unpack('H*', $ask->('')->{body}), '00000000020801', 'SERVING');
    is(unpack('H*', $grpc->set('NOT_SERVING') && $ask->('')->{body}), '00000000020802', 'NOT_SERVING');
    like($grpc->set('status 14') && $ask->('')->{raw_head}, qr/grpc-status: 14/, 'a status');
    like($ask->("\x0a\x01a")->{raw_head}, qr/grpc-status: 5/, 'a service that there is not');
    is(unpack('H*', $grpc->set(SERVING => service => 'a') && $ask->("\x0a\x01a")->{body}), '00000000020801', 'one that there is');
    is(join(' ', $grpc->asked), '- - - a a', 'what was asked for');
    is(join(' ', $grpc->asked(3)), 'a a', 'or the last of it');
};

done_testing;
