# The ways to Redis: TLS, a unix socket, users, databases.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $PASSWORD = 'p@ss/w:rd?&%';
my $redis = RegistryTest->redis(tls => 1, socket => 1, user => [ 'web', $PASSWORD, '~upstream:*', '&upstream:*', '+@all', '-@admin', '-@dangerous', '+info' ]);
my $certificates = RegistryTest::Redis->certificates;
my $plain = node(redis => $redis);
connected($plain) or die "no sync\n";
my $addr = '127.0.0.9:1';

# A node with that URL is in step with the plain one, database 0.
sub in_step {
    my ($what, $url, %settings) = @_;
    subtest $what => sub {
        my $node = node(redis => $url, settings => \%settings);
        ok(connected($node), 'connected') or return diag($node->error_log);
        change($node, add => $addr, weight => 4);
        becomes($plain, $addr, { weight => 4 }, 'what it is told is known elsewhere');
        change($plain, weight => $addr, weight => 6);
        becomes($node, $addr, { weight => 6 }, 'and what another is told to it');
        my $since = time;
        change($plain, remove => $addr);
        becomes($node, $addr, undef, 'soon');
        log_says($node, 'used', 'the log');
        unlike($node->error_log, qr/\Q$PASSWORD\E|p%40ss|rd%3F/i, 'without a password');
        my @urls = map { /Redis (\S+) is used/ } redis_lines($node);
        is(scalar @urls, 1, 'with the address') && diag($urls[0]);
        $node->log_is_clean;
        $node->quit;
    };
    return;
}
# One that is not connected, and the log says why.
sub refused {
    my ($what, $pattern, $url, %settings) = @_;
    subtest $what => sub {
        my $node = node(redis => $url, settings => \%settings);
        my $line = $node->wait_log(qr/can't be used/, 10 * time_scale());
        like($line || '', $pattern, 'the log says why');
        change($node, add => $addr);
        sleep 2 * $INTERVAL;
        is(known($plain), '', 'what it is told stays with it');
        log_says($node, 'away', 'once');
        unlike($node->error_log, qr/\Q$PASSWORD\E|p%40ss|rd%3F/i, 'without a password');
        $node->log_is_clean;
        $node->quit;
    };
    return;
}

my $secret = RegistryTest::Client::uri_escape($PASSWORD);
my ($port, $tls, $socket) = ($redis->port, $redis->tls_port, $redis->socket);
my %ca = (redis_trusted_certificate => "$certificates/ca.pem");

in_step('TLS, with the CA', "rediss://127.0.0.1:$tls", %ca);
in_step('by name', "rediss://localhost:$tls/0", %ca);
in_step('as valkeys', "valkeys://127.0.0.1:$tls/0", %ca);
in_step('with a user', "rediss://web:$secret\@127.0.0.1:$tls/0", %ca);
in_step('a user without TLS', "redis://web:$secret\@127.0.0.1:$port/0");
in_step('as valkey', "valkey://127.0.0.1:$port");
in_step('a name', "redis://localhost:$port");
in_step('a unix socket', "unix:$socket");
in_step('another way to write it', "unix://$socket");
in_step('and another', "redis+unix://$socket");
in_step('a unix socket and a user', "\"unix:$socket?db=0&user=web&pass=$secret\"");

refused('TLS, with another CA', qr/certificate/i, "rediss://127.0.0.1:$tls", redis_trusted_certificate => "$certificates/other.pem");
refused('TLS, with those of the system', qr/certificate/i, "rediss://127.0.0.1:$tls");
refused('TLS where there is none', qr/\S/, "rediss://127.0.0.1:$port", %ca);
refused('no TLS where there is', qr/\S/, "redis://127.0.0.1:$tls");
refused('a user with a wrong password', qr/WRONGPASS|password/i, "redis://web:x$secret\@127.0.0.1:$port");
refused('a user that there is not', qr/WRONGPASS|password/i, "redis://nobody:$secret\@127.0.0.1:$port");
refused('a socket that there is not', qr/No such file/i, "unix:$socket.none");
refused('a name that there is not', qr/\S/, "redis://no-such-host.invalid:$port");
refused('a database that there is not', qr/DB index|out of range|database/i, "redis://127.0.0.1:$port/99");

subtest 'another database is another registry' => sub {
    my ($one, $two) = (node(redis => $redis->url(db => 3)), node(redis => "\"unix:$socket?db=3\""));
    connected($_) for $one, $two;
    change($one, add => $addr);
    becomes($two, $addr, {}, 'two that use it know each other\'s');
    change($plain, add => '127.0.0.9:2');
    sleep 2 * $INTERVAL;
    is(known($plain), '127.0.0.9:2', 'one that does not knows its own');
    is(known($two), $addr, 'and they theirs');
    my $client = $redis->client(db => 3);
    is($client->call(HEXISTS => 'upstream:servers:meta', $addr), 1, 'where it should be');
    $_->log_is_clean for $one, $two;
    change($plain, remove => '127.0.0.9:2');
};

subtest 'a certificate that is replaced by one of another CA' => sub {
    my $file = spew($plain->dir . '/ca.pem', slurp("$certificates/other.pem"));
    my $node = node(redis => "rediss://127.0.0.1:$tls", settings => { redis_trusted_certificate => $file });
    ok($node->wait_log(qr/can't be used/), 'the wrong CA');
    spew($file, slurp("$certificates/ca.pem"));
    ok($node->reload, 'a reload with the right one in its place');
    ok(connected($node), 'connects');
    change($node, add => $addr);
    becomes($plain, $addr, {}, 'and is in step');
    log_says($node, qr/^away (?:used|again)$/, 'the log');
    $node->log_is_clean;
};

$plain->log_is_clean;
done_testing;
