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

# What nginx -t says of a URL.
my %WHY = (
    scheme => 'a URL of Redis begins with redis://, rediss://, unix:/, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://',
    host => 'there must be a host after "//", and after each comma',
    name => 'a host must be a name, an IPv4 address or an IPv6 address in brackets',
    port => 'a port must be a number from 1 to 65535',
    db => 'a database must be a number from 0 to 2147483647',
    more => 'there is too much after the last "/"',
    chars => 'a URL must not contain control characters, spaces or "#": write them as %XX',
    query => 'after "?" there may be db, user and pass with unix:, sentinel_user and sentinel_password with redis+sentinel:, each once',
    one => 'only redis+sentinel:// and redis+cluster:// take more than one host',
    percent => '"%" must be followed by two hexadecimal digits in a URL: write "%" itself as %25',
    socket => 'the path of a unix socket must be absolute and at most 107 bytes long: unix:/PATH',
    service => 'the name of the service must follow the sentinels: redis+sentinel://HOST/SERVICE',
    cluster_db => 'a cluster has no database other than 0',
    login => '"/", "?" and "@" in a user name or password must be written as %2F, %3F and %40',
    nopass => 'a user name needs a password: write USER:PASSWORD@ before the host',
);

subtest 'URLs that are none' => sub {
    bad("redis $_->[0]", "invalid \"redis\": $WHY{$_->[1]}", "redis $_->[0];") for (
        [ '""', 'scheme' ],
        [ '127.0.0.1:6379', 'scheme' ],
        [ '127.0.0.1', 'scheme' ],
        [ 'on', 'scheme' ],
        [ 'http://127.0.0.1:6379', 'scheme' ],
        [ 'redis:127.0.0.1', 'scheme' ],
        [ 'redis:/127.0.0.1', 'scheme' ],
        [ 'redis://', 'host' ],
        [ 'redis://:6379', 'host' ],
        [ 'redis:///0', 'host' ],
        [ 'redis://127.0.0.1:0', 'port' ],
        [ 'redis://127.0.0.1:65536', 'port' ],
        [ 'redis://127.0.0.1:x', 'port' ],
        [ 'redis://127.0.0.1:6379:1', 'port' ],
        [ 'redis://127.0.0.1:6379/x', 'db' ],
        [ 'redis://127.0.0.1:6379/-1', 'db' ],
        [ 'redis://127.0.0.1:6379/0/1', 'more' ],
        [ 'redis://127.0.0.1:6379/99999999999', 'db' ],
        [ 'redis://[::1:6379', 'name' ],
        [ 'redis://::1:6379', 'host' ],
        [ '"redis://127.0.0.1 :6379"', 'chars' ],
        [ 'redis://127.0.0.1:6379?db=1', 'query' ],
        [ 'redis://127.0.0.1,127.0.0.2', 'one' ],
        [ "redis://web:%zz$SECRET\@127.0.0.1", 'percent' ],
        [ "redis://web:$SECRET\@", 'host' ],
        [ "redis://web:$SECRET\@127.0.0.1:x", 'port' ],
        [ "redis://web:$SECRET\@127.0.0.1/x", 'db' ],
        [ "redis://$SECRET/x:y\@127.0.0.1", 'login' ],
        [ "redis://web:$SECRET/x\@127.0.0.1", 'login' ],
        [ "redis://web:a\@$SECRET\@127.0.0.1", 'login' ],
        [ "redis://$SECRET\@127.0.0.1", 'nopass' ],
        [ "web:$SECRET\@127.0.0.1:6379", 'scheme' ],
        [ "http://web:$SECRET\@127.0.0.1", 'scheme' ],
        [ 'unix:', 'socket' ],
        [ 'unix:run/redis.sock', 'socket' ],
        [ 'unix:/run/redis.sock?db=x', 'db' ],
        [ "\"unix:/run/redis.sock?db=1&password=$SECRET\"", 'query' ],
        [ 'redis+sentinel://127.0.0.1:26379', 'service' ],
        [ 'redis+sentinel://127.0.0.1:26379/', 'service' ],
        [ 'redis+sentinel:///main', 'host' ],
        [ 'redis+sentinel://a,,b/main', 'host' ],
        [ 'redis+sentinel://a:x/main', 'port' ],
        [ 'redis+sentinel://a/main/x', 'db' ],
        [ "redis+sentinel://a/main?sentinel_pw=$SECRET", 'query' ],
        [ 'redis+cluster://', 'host' ],
        [ 'redis+cluster://a:7000,', 'host' ],
        [ 'redis+cluster://a:7000/1', 'cluster_db' ],
        [ "redis+cluster://web:$SECRET\@a:7000,b:y", 'port' ],
        [ 'redis+tls://127.0.0.1', 'scheme' ],
    );
};

subtest 'times' => sub {
    good("redis_timeout $_", $URL, "redis_timeout $_;") for qw(10ms 500ms 1s 60s 1m);
    bad("redis_timeout $_", sprintf('invalid time "%s" in "redis_timeout": write it as 1s, from 10ms to 60s', tr/"//dr), $URL, "redis_timeout $_;")
        for qw(0 9ms 61s 60001ms 1h -1 x 1.5s), '""';
    good("redis_interval $_", $URL, "redis_interval $_;") for qw(100ms 1s 1m 1h 60m);
    bad("redis_interval $_", sprintf('invalid time "%s" in "redis_interval": write it as 1s, from 100ms to 1h', tr/"//dr), $URL, "redis_interval $_;")
        for qw(0 99ms 3601s 61m 2h x), '""';
    good("redis_tombstone_ttl $_", $URL, "redis_tombstone_ttl $_;") for qw(1s 2s 1h 24h 30d);
    bad("redis_tombstone_ttl $_", sprintf('invalid time "%s" in "redis_tombstone_ttl": write it as 24h, it must be at least 1s', tr/"//dr), $URL, "redis_tombstone_ttl $_;")
        for qw(0 999ms x), '""';
    bad('redis_tombstone_ttl 366d', 'invalid time "366d" in "redis_tombstone_ttl": it may be a year at most', $URL, 'redis_tombstone_ttl 366d;');
};

subtest 'names' => sub {
    good("redis_prefix $_", $URL, "redis_prefix $_;") for qw(upstream web.main a A-1_b:c), 'x' x 64;
    bad("redis_prefix $_", sprintf('invalid value "%s" in "redis_prefix": use 1 to 64 letters, digits, ".", "_", ":" or "-"', tr/"//dr), $URL, "redis_prefix $_;")
        for '""', '"a b"', 'x' x 65, '"a{b"', '"a}b"', '"a*b"', "\xc3\xa4";
    good("redis_node $_", $URL, "redis_node $_;") for qw(web-1 web.example.com a A_1), 'x' x 64;
    bad("redis_node $_", sprintf('invalid value "%s" in "redis_node": use 1 to 64 letters, digits, ".", "_" or "-"', tr/"//dr), $URL, "redis_node $_;")
        for '""', '"a b"', 'x' x 65, 'a/b', 'a:b';
};

subtest 'certificates' => sub {
    my $tls = 'redis rediss://127.0.0.1:6380;';
    my $bad = sub { return 'invalid "redis_trusted_certificate": "' . $node->dir . "$_[0]\": $_[1]" };
    good('a CA', $tls, "redis_trusted_certificate $certificates/ca.pem;");
    good('more than one in a file', $tls, 'redis_trusted_certificate ' . spew($node->dir . '/both.pem',
        slurp("$certificates/ca.pem") . slurp("$certificates/other.pem")) . ';');
    good('relative to where the configuration is', $tls, 'redis_trusted_certificate ca.pem;')
        if spew($node->dir . '/conf/ca.pem', slurp("$certificates/ca.pem"));
    bad('a file that is not there', "invalid \"redis_trusted_certificate\": \"$certificates/none.pem\": No such file or directory (os error 2)", $tls,
        "redis_trusted_certificate $certificates/none.pem;");
    bad('a file without a certificate', $bad->('/empty.pem', 'there is no certificate in PEM form in it'), $tls, 'redis_trusted_certificate ' . $node->dir . '/empty.pem;');
    bad('a file with something else in it', $bad->('/broken.pem', 'certificate 1 in it is damaged'), $tls, 'redis_trusted_certificate ' . $node->dir . '/broken.pem;');
    bad('a directory', $bad->('', 'Is a directory (os error 21)'), $tls, 'redis_trusted_certificate ' . $node->dir . ';');
    bad('where there is no TLS', "invalid \"redis_trusted_certificate\": \"$certificates/ca.pem\": "
            . 'certificates are for URLs with TLS: rediss://, rediss+sentinel:// or rediss+cluster://',
        $URL, "redis_trusted_certificate $certificates/ca.pem;");
};

subtest 'what does not go together' => sub {
    my %others = (
        redis_prefix => 'web', redis_timeout => '1s', redis_interval => '1s', redis_node => 'a',
        redis_trusted_certificate => "$certificates/ca.pem", redis_tombstone_ttl => '1h',
    );
    for my $name (sort keys %others) {
        bad("$name without redis", "\"$name\" needs \"redis\" in its registry block, which says where Redis is", "$name $others{$name};");
        good("$name before it", "$name $others{$name};", $name =~ /cert/ ? 'redis rediss://127.0.0.1;' : $URL);
        bad("$name twice", "\"$name\" directive is duplicate", $URL, ("$name $others{$name};") x 2);
        bad("$name without a value", "invalid number of arguments in \"$name\" directive: it takes one", $URL, "$name;");
        bad("$name with two", "invalid number of arguments in \"$name\" directive: it takes one", $URL, "$name a b;");
    }
    my $second = "}\nregistry second 128k {";
    bad('two registries with the same keys', qr/^registry "main" in \S+:\d+ has the same Redis and the same "redis_prefix".*another redis_prefix/, $URL, $second, $URL);
    good('two with keys of their own', $URL, $second, $URL, 'redis_prefix second;');
    good('two in different databases', $URL, $second, 'redis redis://127.0.0.1:6379/1;');
    bad('redis twice', '"redis" directive is duplicate', $URL, "redis redis://:$SECRET\@127.0.0.2;");
    bad('redis without a value', 'invalid number of arguments in "redis" directive: it takes one', 'redis;');
    bad('redis with two', 'invalid number of arguments in "redis" directive: it takes one', "redis redis://:$SECRET\@127.0.0.1 redis://127.0.0.2;");
    bad('a directive that there is not', qr/unknown directive "redis_password".*redis_node/, $URL, "redis_password $SECRET;");
};

subtest 'nginx -t asks nobody' => sub {
    my $redis = RegistryTest->redis;
    my $proxy = RegistryTest->proxy($redis->address);
    good('a Redis that is there', 'redis ' . $redis->url(port => $proxy->port) . ';', 'redis_interval 100ms;');
    is($proxy->stats->{connections}, 0, 'it has not heard of it');
};

done_testing;
