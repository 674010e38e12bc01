# The examples in nginx-conf/: nginx accepts each as it is, without a warning, and the smallest does
# what its comments say.

use lib 't/lib';
use RegistryTest;
use File::Spec;
use RegistryTest::Process qw(find_binary spawn stop_process exit_status);

my ($module) = split ' ', $ENV{TEST_NGINX_LOAD_MODULES} || '';
my @examples = glob 'nginx-conf/*.conf';

# As the comment in each says: a prefix of one's own with the module in it.
sub prefix {
    my $dir = temp_dir();
    mkdir "$dir/modules";
    symlink $module, "$dir/modules/ngx_http_upstream_registry_module.so" or die "symlink: $!\n";
    return $dir;
}

sub run_nginx {
    my ($dir, @arguments) = @_;
    my $pid = spawn([ find_binary(), '-p', $dir, '-e', 'error.log', @arguments ], stdout => "$dir/out", stderr => "$dir/out");
    wait_until(sub { !alive($pid) }, 10 * time_scale()) or stop_process($pid, KILL => 1);
    return (exit_status($pid), slurp("$dir/out"));
}

cmp_ok(scalar @examples, '>=', 2, 'there is a small example and a complete one');

for my $file (@examples) {
    my $dir = prefix();
    my ($status, $said) = run_nginx($dir, '-t', '-c', File::Spec->rel2abs($file));
    is($status, 0, "nginx -t accepts $file");
    unlike($said . slurp("$dir/error.log"), qr/\[(?:warn|error|crit|alert|emerg)\]/, "and has nothing to say against it");
}

my $complete = slurp('nginx-conf/complete.conf');
for my $directive (qw(
    registry heartbeat_ttl cleanup_interval on_expire remove_after on_duplicate registry_balance registry_api
    namespace= read_only allow_get
)) {
    like($complete, qr/^[^#\n]*\b\Q$directive\E/m, "the complete example has $directive");
}
my $cluster = slurp('nginx-conf/cluster.conf');
for my $directive (qw(redis redis_prefix redis_timeout redis_interval redis_tombstone_ttl)) {
    like($cluster, qr/^[^#\n]*\b$directive /m, "the example with Redis has $directive");
}
like($cluster, qr/^ *# $_ .*;/m, "and $_ in a comment") for qw(redis_node redis_trusted_certificate);

# The commands in the comments of the small one, on a port of its own.
{
    my $dir = prefix();
    my $port = free_port();
    (my $conf = slurp('nginx-conf/minimal.conf')) =~ s/\b8080\b/$port/g;
    my $commands = join "\n", $conf =~ /^#   (curl .*)$/mg;
    spew("$dir/nginx.conf", "master_process off;\ndaemon off;\n" . ($> == 0 ? "user root;\n" : '') . $conf);
    my $pid = spawn([ find_binary(), '-p', $dir, '-e', 'error.log', '-c', 'nginx.conf' ], stdout => "$dir/out", stderr => "$dir/out");
    ok(wait_until(sub { http('GET', "http://127.0.0.1:$port/upstream/status")->{status} == 200 }, 10 * time_scale()),
        'minimal.conf runs') or diag(slurp("$dir/out"));

    like($commands, qr/curl -d port=9001 \S+add\b.*\n.*curl \S+status/s, 'its comments add a server and look at it');
    for my $command (split /\n/, $commands) {
        $command =~ s/\s+#.*//;
        like(scalar(`$command -sS 2>&1`), qr/^\{"code":200,.*127\.0\.0\.1:9001/, "$command: works");
    }
    my $backend = RegistryTest->backend(name => 'a');
    http('POST', "http://127.0.0.1:$port/upstream/remove", body => 'port=9001');
    http('POST', "http://127.0.0.1:$port/upstream/add", body => 'port=' . $backend->port);
    is(http('GET', "http://127.0.0.1:$port/hello")->{headers}{'x-backend'}, 'a', 'and a request gets to the server');
    is(stop_process($pid, QUIT => 5), 'QUIT', 'it quits');
    unlike(slurp("$dir/error.log"), qr/\[(?:alert|emerg)\]/, 'and had no alarm');
}

# Two nodes of the one with Redis, as its comments say.
{
    my $redis = RegistryTest->redis;
    my @commands = $cluster =~ /^#   (curl .*)$/mg;
    my @nodes = map { { dir => prefix(), port => free_port() } } 1 .. 2;
    for my $node (@nodes) {
        (my $conf = $cluster) =~ s/\b8080\b/$node->{port}/g;
        $conf =~ s/\b6379\b/$redis->port/ge;
        spew("$node->{dir}/nginx.conf", "daemon off;\n" . ($> == 0 ? "user root;\n" : '') . $conf);
        $node->{pid} = spawn([ find_binary(), '-p', $node->{dir}, '-e', 'error.log', '-c', 'nginx.conf' ],
            stdout => "$node->{dir}/out", stderr => "$node->{dir}/out");
        my $status = "http://127.0.0.1:$node->{port}/upstream/status";
        ok(wait_until(sub { (http('GET', $status)->{json} || {})->{sync}{connected} }, 10 * time_scale()), 'cluster.conf runs, and finds Redis')
            or diag(slurp("$node->{dir}/out"));
    }
    is(scalar(@commands), 2, 'its comments add a server at one node and look at the other');
    for my $i (0, 1) {
        (my $command = $commands[$i]) =~ s/\s+#.*//;
        $command =~ s/\b8080\b/$nodes[$i]{port}/;
        ok(wait_until(sub { `$command -sS 2>&1` =~ /^\{"code":200,.*127\.0\.0\.1:9001/ }, 5 * time_scale()), "$command: works");
    }
    is(stop_process($_->{pid}, QUIT => 5), 'QUIT', 'it quits') for @nodes;
    unlike(slurp("$_->{dir}/error.log"), qr/\[(?:warn|error|crit|alert|emerg)\]/, 'and had no trouble') for @nodes;
}

done_testing;
