# The directives redis and redis_*: what they take, and what nginx -t says of the rest.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $SECRET = 'never-to-be-seen';
my $node = RegistryTest->nginx(start => 0);
my $conf = $node->conf_text;
my $certificates = RegistryTest::Redis->certificates;
spew($node->dir . '/empty.pem', '');
spew($node->dir . '/broken.pem', "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");

# nginx -t of a registry with these lines.
sub tried {
    my (@lines) = @_;
    my $block = join "\n", 'registry main 128k {', @lines, '}';
    my ($exit, $output) = $node->test_conf($conf =~ s/http \{/http {\n$block\n/r);
    unlike($output, qr/\Q$SECRET\E/, 'the password is not shown') if "@lines" =~ /\Q$SECRET\E/;
    return ($exit, $output);
}
sub good {
    my ($what, @lines) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($exit, $output) = tried(@lines);
    ok($exit == 0 && $output !~ /\[(?:warn|error|emerg|alert)\]/, $what) or diag($output);
    return;
}
# pattern: of the message, after "[emerg] 123#123: " and before " in FILE:LINE".
sub bad {
    my ($what, $pattern, @lines) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($exit, $output) = tried(@lines);
    isnt($exit, 0, $what);
    my ($message) = $output =~ m{\[emerg\] (?:\d+#\d+: )?(.*?) in /\S+:\d+$}m;
    like($message || $output, ref $pattern ? $pattern : qr/^\Q$pattern\E$/, '  and why');
    return;
}

my $URL = 'redis redis://127.0.0.1:6379;';

subtest 'URLs' => sub {
    # Nobody listens there, and nginx -t does not ask.
    good("redis $_", "redis $_;") for (
        'redis://127.0.0.1', 'redis://127.0.0.1:6379', 'redis://127.0.0.1:6379/', 'redis://127.0.0.1:6379/0', 'redis://127.0.0.1/15',
        'redis://localhost:1/3', 'redis://redis.example.com', 'redis://[::1]:6379', 'redis://[::1]',
        "redis://:$SECRET\@127.0.0.1:6379/0", "redis://web:$SECRET\@127.0.0.1:6379/0", "redis://web:%40%2f$SECRET\@127.0.0.1",
        'rediss://127.0.0.1:6380', "rediss://web:$SECRET\@redis.example.com:6380/1",
        'valkey://127.0.0.1:6379/2', 'valkeys://127.0.0.1:6379',
        'unix:/run/redis.sock', 'unix:///run/redis.sock', 'redis+unix:///run/redis.sock', "\"unix:/run/redis.sock?db=2&user=web&pass=$SECRET\"",
        'redis+sentinel://127.0.0.1:26379/main', 'redis+sentinel://127.0.0.1:26379,127.0.0.2:26379,[::1]:26379/main/2', 'redis+sentinel://a,b/main',
        "redis+sentinel://web:$SECRET\@127.0.0.1:26379/main/0?sentinel_user=s&sentinel_password=$SECRET", 'rediss+sentinel://127.0.0.1:26379/main',
        'redis+cluster://127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002', 'redis+cluster://127.0.0.1:7000', "rediss+cluster://web:$SECRET\@a:7000,b",
    );
};

subtest 'URLs that are none' => sub {
    bad("redis $_->[0]", $_->[1], "redis $_->[0];") for (
        [ '""',                               qr/"redis"/ ],
        [ '127.0.0.1:6379',                   qr/"redis".*redis:\/\// ],
        [ '127.0.0.1',                        qr/"redis"/ ],
        [ 'on',                               qr/"redis"/ ],
        [ 'http://127.0.0.1:6379',            qr/"redis".*redis:\/\// ],
        [ 'redis:127.0.0.1',                  qr/"redis"/ ],
        [ 'redis:/127.0.0.1',                 qr/"redis"/ ],
        [ 'redis://',                         qr/"redis"/ ],
        [ 'redis://:6379',                    qr/"redis"/ ],
        [ 'redis:///0',                       qr/"redis"/ ],
        [ 'redis://127.0.0.1:0',              qr/"redis".*port/ ],
        [ 'redis://127.0.0.1:65536',          qr/"redis".*port/ ],
        [ 'redis://127.0.0.1:x',              qr/"redis".*port/ ],
        [ 'redis://127.0.0.1:6379:1',         qr/"redis"/ ],
        [ 'redis://127.0.0.1:6379/x',         qr/"redis".*(?:db|database)/i ],
        [ 'redis://127.0.0.1:6379/-1',        qr/"redis"/ ],
        [ 'redis://127.0.0.1:6379/0/1',       qr/"redis"/ ],
        [ 'redis://127.0.0.1:6379/99999999999', qr/"redis"/ ],
        [ 'redis://[::1:6379',                qr/"redis"/ ],
        [ 'redis://::1:6379',                 qr/"redis"/ ],
        [ '"redis://127.0.0.1 :6379"',        qr/"redis"/ ],
        [ 'redis://127.0.0.1:6379?db=1',      qr/"redis"/ ],
        [ 'redis://127.0.0.1,127.0.0.2',      qr/"redis"/ ],
        [ "redis://web:%zz$SECRET\@127.0.0.1", qr/"redis"/ ],
        [ "redis://web:$SECRET\@",            qr/"redis"/ ],
        [ "redis://web:$SECRET\@127.0.0.1:x", qr/"redis"/ ],
        [ "redis://web:$SECRET\@127.0.0.1/x", qr/"redis"/ ],
        [ "web:$SECRET\@127.0.0.1:6379",      qr/"redis"/ ],
        [ "http://web:$SECRET\@127.0.0.1",    qr/"redis"/ ],
        [ 'unix:',                            qr/"redis"/ ],
        [ 'unix:run/redis.sock',              qr/"redis"/ ],
        [ 'unix:/run/redis.sock?db=x',        qr/"redis"/ ],
        [ "\"unix:/run/redis.sock?db=1&password=$SECRET\"", qr/"redis"/ ],
        [ 'redis+sentinel://127.0.0.1:26379', qr/"redis".*(?:service|SERVICE|master)/ ],
        [ 'redis+sentinel://127.0.0.1:26379/', qr/"redis"/ ],
        [ 'redis+sentinel:///main',           qr/"redis"/ ],
        [ 'redis+sentinel://a,,b/main',       qr/"redis"/ ],
        [ 'redis+sentinel://a:x/main',        qr/"redis"/ ],
        [ 'redis+sentinel://a/main/x',        qr/"redis"/ ],
        [ "redis+sentinel://a/main?sentinel_pw=$SECRET", qr/"redis"/ ],
        [ 'redis+cluster://',                 qr/"redis"/ ],
        [ 'redis+cluster://a:7000,',          qr/"redis"/ ],
        [ 'redis+cluster://a:7000/1',         qr/"redis"/ ],
        [ "redis+cluster://web:$SECRET\@a:7000,b:y", qr/"redis"/ ],
        [ 'redis+tls://127.0.0.1',            qr/"redis"/ ],
    );
};

subtest 'times' => sub {
    good("redis_timeout $_", $URL, "redis_timeout $_;") for qw(10ms 500ms 1s 60s 1m);
    bad("redis_timeout $_", qr/"redis_timeout"/, $URL, "redis_timeout $_;") for qw(0 9ms 61s 60001ms 1h -1 x 1.5s), '""';
    good("redis_interval $_", $URL, "redis_interval $_;") for qw(100ms 1s 1m 1h 60m);
    bad("redis_interval $_", qr/"redis_interval"/, $URL, "redis_interval $_;") for qw(0 99ms 3601s 61m 2h x), '""';
    good("redis_tombstone_ttl $_", $URL, "redis_tombstone_ttl $_;") for qw(1s 2s 1h 24h 30d);
    bad("redis_tombstone_ttl $_", qr/"redis_tombstone_ttl"/, $URL, "redis_tombstone_ttl $_;") for qw(0 366d x), '""';
};

subtest 'names' => sub {
    good("redis_prefix $_", $URL, "redis_prefix $_;") for qw(upstream web.main a A-1_b:c), 'x' x 64;
    bad("redis_prefix $_", qr/"redis_prefix"/, $URL, "redis_prefix $_;") for '""', '"a b"', 'x' x 300, '"a{b"', 'a}b' x 0 || '"a*b"';
    good("redis_node $_", $URL, "redis_node $_;") for qw(web-1 web.example.com a A_1), 'x' x 64;
    bad("redis_node $_", qr/"redis_node"/, $URL, "redis_node $_;") for '""', '"a b"', 'x' x 300, 'a/b', '"a\\nb"';
};

subtest 'certificates' => sub {
    my $tls = 'redis rediss://127.0.0.1:6380;';
    good('a CA', $tls, "redis_trusted_certificate $certificates/ca.pem;");
    good('more than one in a file', $tls, 'redis_trusted_certificate ' . spew($node->dir . '/both.pem',
        slurp("$certificates/ca.pem") . slurp("$certificates/other.pem")) . ';');
    good('relative to where the configuration is', $tls, 'redis_trusted_certificate ca.pem;')
        if spew($node->dir . '/conf/ca.pem', slurp("$certificates/ca.pem"));
    bad('a file that is not there', qr{"redis_trusted_certificate".*/none\.pem|/none\.pem.*"redis_trusted_certificate"}, $tls,
        "redis_trusted_certificate $certificates/none.pem;");
    bad('a file without a certificate', qr/"redis_trusted_certificate"/, $tls, 'redis_trusted_certificate ' . $node->dir . '/empty.pem;');
    bad('a file with something else in it', qr/"redis_trusted_certificate"/, $tls, 'redis_trusted_certificate ' . $node->dir . '/broken.pem;');
    bad('a directory', qr/"redis_trusted_certificate"/, $tls, 'redis_trusted_certificate ' . $node->dir . ';');
};

subtest 'what does not go together' => sub {
    my %others = (
        redis_prefix => 'web', redis_timeout => '1s', redis_interval => '1s', redis_node => 'a',
        redis_trusted_certificate => "$certificates/ca.pem", redis_tombstone_ttl => '1h',
    );
    for my $name (sort keys %others) {
        bad("$name without redis", qr/"$name".*"redis"/, "$name $others{$name};");
        good("$name before it", "$name $others{$name};", $name =~ /cert/ ? 'redis rediss://127.0.0.1;' : $URL);
        bad("$name twice", qr/"$name".*duplicate|duplicate.*"$name"/, $URL, ("$name $others{$name};") x 2);
        bad("$name without a value", qr/invalid number of arguments in "$name" directive/, $URL, "$name;");
        bad("$name with two", qr/invalid number of arguments in "$name" directive/, $URL, "$name a b;");
    }
    my $second = "}\nregistry second 128k {";
    bad('two registries with the same keys', qr/^registry "main" in \S+:\d+ has the same Redis and the same "redis_prefix".*another redis_prefix/, $URL, $second, $URL);
    good('two with keys of their own', $URL, $second, $URL, 'redis_prefix second;');
    good('two in different databases', $URL, $second, 'redis redis://127.0.0.1:6379/1;');
    bad('redis twice', qr/"redis".*duplicate|duplicate.*"redis"/, $URL, "redis redis://:$SECRET\@127.0.0.2;");
    bad('redis without a value', qr/invalid number of arguments in "redis" directive/, 'redis;');
    bad('redis with two', qr/invalid number of arguments in "redis" directive/, "redis redis://:$SECRET\@127.0.0.1 redis://127.0.0.2;");
    bad('a directive that there is not', qr/unknown directive "redis_password".*redis_node/, $URL, "redis_password $SECRET;");
};

subtest 'nginx -t asks nobody' => sub {
    my $redis = RegistryTest->redis;
    my $proxy = RegistryTest->proxy($redis->address);
    good('a Redis that is there', 'redis ' . $redis->url(port => $proxy->port) . ';', 'redis_interval 100ms;');
    is($proxy->stats->{connections}, 0, 'it has not heard of it');
};

done_testing;
